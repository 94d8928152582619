"""What runs once per ComfyUI checkout: a server, and the script of checks inside the host."""

import json
import subprocess
from pathlib import Path

import pytest
from comfy_server import (
    install,
    server,  # noqa: F401
)

SCRIPT = Path(__file__).with_name("inside_all.py")


@pytest.fixture(scope="session")
def inside(comfy_host, tmp_path_factory) -> Path:
    """The folder of a finished run of the script: ``results.json`` and what its checks left for others."""
    folder = tmp_path_factory.mktemp("inside")
    found, pack = folder / "results.json", install(folder)
    run = subprocess.run([comfy_host.python, SCRIPT, pack, found], cwd=comfy_host.path, capture_output=True, text=True)
    assert not run.returncode and found.exists(), run.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def results(inside) -> dict[str, str]:
    """The traceback of every check, empty where it passed."""
    return json.loads((inside / "results.json").read_text())
