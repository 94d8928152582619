"""What the sources keep to, so that any machine can read them and the page they share with other packs stays whole."""

import re
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
PYTHON = sorted(f for room in ("cidm_ops", "nodes", "tests") for f in (PACK / room).rglob("*.py")) + [PACK / "__init__.py"]
SCRIPTS = sorted((PACK / "web").rglob("*.js"))


@pytest.mark.parametrize("file", PYTHON, ids=lambda file: str(file.relative_to(PACK)))
def test_a_python_source_has_only_letters_that_cp1252_has(file):
    lacking = [
        f"line {number}: {letter!a}"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for letter in line
        if letter.encode("cp1252", "ignore") == b""
    ]
    assert not lacking, "write them as escapes, so that a reader with the encoding of Windows can read the file"


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_a_script_keeps_to_its_own_part_of_the_page(file):
    text = file.read_text(encoding="utf-8")
    for shared in ("document", "window", r"document\.body", r"document\.head"):
        assert not re.search(rf"\b{shared}\.addEventListener", text), f"it listens on {shared}, which is everybody's"
    assert not re.search(r"document\.(head|body|documentElement)\.(append|prepend|insert|replace)", text)
    names = re.findall(r"registerExtension\(\{\s*name: \"([^\"]*)\"", text)
    assert len(names) == text.count("registerExtension(") and all(name.startswith("cidm.") for name in names)
