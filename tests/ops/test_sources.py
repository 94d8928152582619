"""What the sources keep to, so that any machine can read them and the page they share with other packs stays whole."""

import ast
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


# These ask which field has the focus, as two renderers make the fields; test_choices.py shows that a closed list takes no event.
PAGE_WIDE = {"banks.js", "choices.js", "completion.js"}


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_a_script_keeps_to_its_own_part_of_the_page(file):
    text = file.read_text(encoding="utf-8")
    if file.name not in PAGE_WIDE:
        for shared in ("document", "window", r"document\.body", r"document\.head"):
            assert not re.search(rf"\b{shared}\.addEventListener", text), f"it listens on {shared}, which is everybody's"
        assert not re.search(r"document\.(head|body|documentElement)\.(append|prepend|insert|replace)", text)
    names = re.findall(r"registerExtension\(\{\s*name: \"([^\"]*)\"", text)
    assert len(names) == text.count("registerExtension(") and all(name.startswith("cidm.") for name in names)


# Who may write a file in place: the one writer, a note, a probe and what lasts for a moment; scripts that run in the host for a benchmark
IN_PLACE = {
    "cidm_ops/bank/files.py",
    "cidm_ops/bank/lock.py",
    "cidm_ops/bank/bank.py",
    "nodes/native.py",
    *(str(f.relative_to(PACK)) for f in (PACK / "cidm_ops" / "benchmarks" / "speed").glob("*host*.py")),
    "cidm_ops/benchmarks/speed/bank.py",  # a hundred thousand made-up files that go when they are measured
    "cidm_ops/benchmarks/speed/cluster.py",  # pictures in a folder that goes
    "cidm_ops/benchmarks/speed/checkpoints.py",  # files of gigabytes that only a measurement reads
    "cidm_ops/benchmarks/speed/timing.py",  # a switch of the kernel's
    "cidm_ops/doodle/training/data.py",  # an array larger than memory; the captions beside it say that it is whole
    "cidm_ops/doodle/training/renderings.py",  # an array larger than memory, which gets its name when it is whole
}
SHIPPED = [f for f in PYTHON if f.relative_to(PACK).parts[0] in ("cidm_ops", "nodes") and str(f.relative_to(PACK)) not in IN_PLACE]


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file by its name: ``x.write_text()``, ``open(x, "w")``, ``picture.save(file)``."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    words = [ast.unparse(argument) for argument in (*call.args, *(keyword.value for keyword in call.keywords))]
    if name in ("write_text", "write_bytes", "save_file", "open_memmap"):
        return True
    if name == "open":
        return any(re.fullmatch(r"'[rbt]*[wax+][rwbt+]*'", word) for word in words)
    return name in ("save", "savefig") and isinstance(call.func, ast.Attribute) and words[:1] != ["data"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.relative_to(PACK)))
def test_what_is_kept_goes_through_the_one_writer(file):
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call) and writes(node)]
    assert not calls, f"line {calls[0].lineno} writes in place: take bank.files"


def test_the_check_of_writers_knows_every_way_to_write():
    for line in ("f.write_text(x)", "open(f, 'w')", "open(f, mode='r+b')", "picture.save(f)", "figure.savefig(f)", "f.write_bytes(x)"):
        assert writes(ast.parse(line).body[0].value), line
    for line in ("open(f, 'rb')", "open(f)", "picture.save(data, 'PNG')", "save(dict(state), words)"):
        assert not writes(ast.parse(line).body[0].value), line
