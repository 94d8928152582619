"""The host's own classes agree with the backbone: the scripts inside*.py run once in every ComfyUI, each of their checks is a test here."""

import ast
from pathlib import Path

import pytest

CHECKS = [
    n.name
    for script in sorted(Path(__file__).parent.glob("inside*.py"))
    for n in ast.parse(script.read_text(encoding="utf-8")).body
    if isinstance(n, ast.FunctionDef) and n.name.startswith("the_")
]


@pytest.mark.parametrize("check", CHECKS)
def test_inside(results, check):
    assert check in results, "the script ended before this check"
    assert not results[check], results[check]
