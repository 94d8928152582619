"""Every command that the pages tell to run is one that there is: with its options, and the values that it takes."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cidm_ops.__main__ import arguments

PACK = Path(__file__).resolve().parents[2]
PAGES = [PACK / "README.md", PACK / "AGENTS.md", *sorted((PACK / "docs").glob("*.md"))]
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
CIDM = re.compile(r"(?:\.venv/bin/)?cidm ")


def blocks(page: Path) -> Iterator[str]:
    """The lines of a page's blocks of code, those that end in a backslash joined with the next."""
    for block in FENCED.findall(page.read_text(encoding="utf-8")):
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines())


def inline(page: Path) -> Iterator[str]:
    """What stands as code within a page's text."""
    yield from INLINE.findall(FENCED.sub("", page.read_text(encoding="utf-8")))


def commands(lines: Iterator[str], start: re.Pattern[str]) -> list[str]:
    return [line for line in lines if start.match(line)]


def words_of(line: str) -> list[str]:
    """The words of a command after its name, without the comment; what a shell would put in stands as one word."""
    return shlex.split(re.sub(r"\$\([^)]*\)", "X", line), comments=True)[1:]


def parses(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the parser has to say against a command, without running it; "" for nothing, and for the help that was asked for."""
    try:
        arguments().parse_args(words)
    except SystemExit as end:
        return capsys.readouterr().err.strip().splitlines()[-1] if end.code else ""
    return ""


def names_what_there_is(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is wrong with a command that leaves something out, as in running text: its name or an option that it does not have."""
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    first = next((i for i, word in enumerate(words) if not re.fullmatch(r"[a-z]+", word)), len(words))
    capsys.readouterr()
    if wrong := parses([*words[:first], "--help"], capsys):
        return wrong
    told = capsys.readouterr().out
    return next((f"there is no {option}" for option in options if not re.search(rf"{option}\b(?!-)", told)), "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_block_parse_as_they_stand(page, capsys):
    wrong = {line: said for line in commands(blocks(page), CIDM) if (said := parses(words_of(line), capsys))}
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_in_the_text_are_there_with_their_options(page, capsys):
    wrong = {}
    for line in commands(inline(page), CIDM):
        words = words_of(line)
        if parses(words, capsys) and (said := names_what_there_is(words, capsys)):
            wrong[line] = said
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_to_be_made_is_in_the_makefile(page):
    if not shutil.which("make"):
        pytest.skip("no make")
    for line in commands((line for lines in (blocks(page), inline(page)) for line in lines), re.compile(r"(\w+=\S+ )*make [a-z]")):
        words = shlex.split(line, comments=True)
        run = subprocess.run(["make", "-n", *words[words.index("make") + 1 :]], cwd=PACK, capture_output=True, text=True)
        assert run.returncode == 0, f"{line}: {run.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_are_to_be_run_are_there(page):
    lines = [line for lines in (blocks(page), inline(page)) for line in lines if "pytest" in line]
    named = {word for line in lines for word in line.split() if word.startswith("tests/")}
    assert not [name for name in named if not (PACK / name).exists()]


def test_the_check_of_commands_knows_wrong_ones(capsys):
    assert not parses(words_of("cidm bank rename one $name $name-$(basename $run)  # a comment"), capsys)
    for line in ("cidm bank rename one two", "cidm bench speed", "cidm generate --bank b --prompt p --colour red"):
        assert parses(words_of(line), capsys), line
    for line in ("cidm evaluate", "cidm bank …", "cidm bench NAME --json FILE", 'cidm generate ... --region "0,0,0.5,1: a <dog>"'):
        assert not names_what_there_is(words_of(line), capsys), line
    for line in ("cidm paint", "cidm bank throw", "cidm generate ... --regi", "cidm bench speed --json F"):
        assert names_what_there_is(words_of(line), capsys), line
