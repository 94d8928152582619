"""A command begins at once: what it takes is said, and a bank is listed, without the libraries that paint and train."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cidm_ops.__main__ import arguments

PACK = Path(__file__).resolve().parents[2]
RUN = """
import contextlib, io, json, sys
from cidm_ops.__main__ import main

loaded = []
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            code = main(argv)
        except SystemExit as end:
            code = end.code
    loaded.append([argv, code, len(out.getvalue()) > 0, sorted({name.partition(".")[0] for name in sys.modules})])
print(json.dumps(loaded))
"""


def run_in_turn(commands: list[list[str]]) -> list[tuple[list[str], int, bool, set[str]]]:
    """Run commands one after another in a fresh interpreter: each with its exit code, whether it printed something, and the libraries
    that are loaded since.
    """
    argv = [sys.executable, "-c", RUN, json.dumps(commands)]
    done = subprocess.run(argv, cwd=PACK, capture_output=True, text=True, check=True)
    return [(argv, code, printed, set(loaded)) for argv, code, printed, loaded in json.loads(done.stdout)]


def commands_of(parser: argparse.ArgumentParser, name: tuple[str, ...] = ()) -> list[list[str]]:
    """The names of all commands, and of the groups that they are in."""
    inside = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [list(name)] + [found for group in inside for word, sub in group.items() for found in commands_of(sub, (*name, word))]


def test_help_loads_nothing_that_computes():
    commands = commands_of(arguments())
    assert ["generate"] in commands and ["bank", "list"] in commands
    for argv, code, printed, loaded in run_in_turn([[*command, "--help"] for command in commands]):
        assert code == 0 and printed, argv
        assert not loaded & {"torch", "numpy", "PIL", "scipy", "diffusers", "transformers", "filelock", "tqdm", "ray", "fsspec"}, argv


@pytest.mark.parametrize("indexed", [False, True])
def test_a_bank_is_listed_without_torch(tmp_path, indexed):
    bank = Path(shutil.copytree(PACK / "cidm_ops" / "doodle" / "ten", tmp_path / "ten"))
    listing = ["bank", "list", str(bank)]
    if indexed:
        run_in_turn([listing])
        assert (bank / "index.json").is_file()
    [(_, code, printed, loaded)] = run_in_turn([listing])
    assert code == 0 and printed
    assert not loaded & {"torch", "PIL", "filelock"}
