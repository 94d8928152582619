"""The pack adds no dependency: what ships to ComfyUI imports itself, the standard library and what every host brings."""

import json
import re
import subprocess
import sys

import pytest
from test_floors import HOST, PACK, SHIPPED, imports, name_of

BROUGHT = {  # module -> the line of the host's requirements.txt that installs it
    "PIL": "pillow",
    "aiohttp": "aiohttp",
    "einops": "einops",
    "filelock": "torch",  # 0.3.64 does not name it: torch requires it
    "numpy": "numpy",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "torch": "torch",
}
TRIED = {"pillow_heif"}  # used where somebody has installed it, see TestHeic in test_folders.py
LOCAL = {"cidm_ops", "nodes"}
PROBE = """
import importlib.metadata, importlib.util, json, sys
brought = json.loads(sys.argv[1])
print(json.dumps({m: [importlib.util.find_spec(m) is not None, importlib.metadata.requires(d) or []] for m, d in brought.items()}))
"""


def project(requirement: str) -> str:
    """The normalised name in a line of requirements: ``Foo_Bar>=1`` is of ``foo-bar``."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]*", requirement).group()).lower()


@pytest.mark.parametrize("file", SHIPPED, ids=name_of)
def test_a_shipped_file_imports_what_every_host_brings(file):
    tops = {module.split(".")[0] for module in imports(file)}
    assert "importlib" not in tops, "a module that is imported by a text is seen by no test"
    if foreign := tops - LOCAL - HOST - BROUGHT.keys() - TRIED - sys.stdlib_module_names:
        pytest.fail(f"imports {', '.join(sorted(foreign))}: no host brings that; leave the file out in .comfyignore or do without")


@pytest.mark.parametrize("file", SHIPPED, ids=name_of)
def test_a_shipped_file_imports_no_file_that_stays_behind(file):
    for module in imports(file):
        place = PACK.joinpath(*module.split("."))
        for found in (place.with_suffix(".py"), place / "__init__.py"):
            assert not found.exists() or found in SHIPPED, f"imports {module}, which does not ship"


def test_every_module_that_a_host_is_to_bring_is_imported():
    used = {module.split(".")[0] for file in SHIPPED for module in imports(file)}
    assert not BROUGHT.keys() - used, "BROUGHT names what nothing imports"


def test_the_host_brings_what_shipped_code_imports(comfy_host):
    lines = (comfy_host.path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {project(line) for line in lines if line and not line.startswith("#")}
    command = [comfy_host.python, "-c", PROBE, json.dumps(BROUGHT)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=comfy_host.path).stdout)
    for module, line in BROUGHT.items():
        importable, needs = found[module]
        assert line in required, f"requirements.txt of {comfy_host} has no {line}"
        assert importable, f"{comfy_host} cannot import {module}"
        own = {"PIL": "pillow"}.get(module, module)
        certain = {project(need) for need in needs if ";" not in need}
        assert own == line or own in certain, f"{line} of {comfy_host} does not require {own}"
    for module in HOST:
        assert (comfy_host.path / module).is_dir() or (comfy_host.path / f"{module}.py").is_file(), f"{comfy_host} has no {module}"
