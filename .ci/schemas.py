"""What the nodes of a pack are to a ComfyUI: ``python schemas.py PACK RESULT.json``, in a checkout and with its Python.

The classes are made by the real host and described as it describes them to its front end. Nothing of the machine is seen: models and
inputs are those of an empty folder.
"""

import asyncio
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

PACK, RESULT = Path(sys.argv[1]), Path(sys.argv[2])
sys.path[0] = str(Path.cwd())
with tempfile.TemporaryDirectory() as empty:
    sys.argv[1:] = ["--cpu", "--base-directory", empty]

    import comfy.options

    comfy.options.enable_args_parsing()

    import utils.extra_config  # noqa: F401 -- as main.py does: comfy has a module of that name

    spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec and spec.loader
    pack = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = pack
    spec.loader.exec_module(pack)

    async def describe_nodes():
        extension = await pack.comfy_entrypoint()
        return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in await extension.get_node_list()}

    RESULT.write_text(json.dumps(asyncio.run(describe_nodes())), encoding="utf-8")
