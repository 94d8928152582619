"""What runs once per ComfyUI checkout: a server, and the script of checks inside the host."""

import json
import subprocess
from pathlib import Path

import pytest
from comfy_server import (
    install,
    server,  # noqa: F401
)

INSIDE = (
    "inside",
    "inside_painting",
    "inside_regions",
    "inside_infusion",
    "inside_weaving",
    "inside_methods",
    "inside_scores",
    "inside_table",
    "inside_transformers",
)
SCRIPTS = [Path(__file__).with_name(f"{name}.py") for name in INSIDE]


@pytest.fixture(scope="session")
def inside(comfy_host, tmp_path_factory) -> Path:
    """The folder of finished runs of the scripts: ``results.json`` and what their checks left for others."""
    folder = tmp_path_factory.mktemp("inside")
    found, pack = folder / "results.json", install(folder)
    for script in SCRIPTS:
        run = subprocess.run([comfy_host.python, script, pack, found], cwd=comfy_host.path, capture_output=True, text=True)
        assert not run.returncode and found.exists(), run.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def results(inside) -> dict[str, str]:
    """The traceback of every check, empty where it passed."""
    return json.loads((inside / "results.json").read_text())
