"""What a script of a benchmark needs inside a ComfyUI: its modules, and the pack as a custom node has it.

Imported by the scripts ``host_*.py``, which run as ``python host_X.py PACK OUT ARGUMENTS...`` in the checkout, with its Python.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

PACK, OUT, *ARGUMENTS = sys.argv[1:]
sys.argv[1:] = []
sys.path[0] = str(Path.cwd())

import torch  # noqa: E402

if not torch.cuda.is_available():
    sys.argv.append("--cpu")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import comfyui_version  # noqa: E402
import utils.extra_config  # noqa: E402, F401 -- as main.py does: comfy has a module of that name

spec: Any = importlib.util.spec_from_file_location("pack", Path(PACK) / "__init__.py", submodule_search_locations=[PACK])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)

from pack.cidm_ops.measure.bench.timing import machine  # noqa: E402


def tell(figures: dict[str, Any]) -> None:
    """The script's result."""
    Path(OUT).write_text(json.dumps(figures | machine() | {"comfyui": comfyui_version.__version__}))
