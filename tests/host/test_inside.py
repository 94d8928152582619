"""The host's own classes agree with the backbone: inside.py runs once in every ComfyUI, each of its checks is a test here."""

import ast
import json
import subprocess
from pathlib import Path

import pytest
from comfy_server import install

SCRIPT = Path(__file__).with_name("inside.py")
CHECKS = [
    n.name for n in ast.parse(SCRIPT.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef) and n.name.startswith("the_")
]


@pytest.fixture(scope="session")
def results(comfy_host, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inside")
    pack, found = install(folder), folder / "results.json"
    run = subprocess.run([comfy_host.python, SCRIPT, pack, found], cwd=comfy_host.path, capture_output=True, text=True)
    assert found.exists(), run.stderr[-4000:]
    return json.loads(found.read_text())


@pytest.mark.parametrize("check", CHECKS)
def test_inside(results, check):
    assert check in results, "the script ended before this check"
    assert not results[check], results[check]
