"""The host's own classes agree with the backbone: inside.py runs once in every ComfyUI, each of its checks is a test here."""

import ast
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("inside.py")
CHECKS = [
    n.name for n in ast.parse(SCRIPT.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef) and n.name.startswith("the_")
]


@pytest.mark.parametrize("check", CHECKS)
def test_inside(results, check):
    assert check in results, "the script ended before this check"
    assert not results[check], results[check]
