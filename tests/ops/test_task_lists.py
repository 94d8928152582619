"""A file of tasks is read line by line: what is wrong is named by its number, and the rest can go on."""

import io
import json
import platform
from types import SimpleNamespace

import pytest

from cidm_ops.cli.cluster import shown
from cidm_ops.cluster.board import ASIDE, FOUND, LEARNED, Board, duration
from cidm_ops.cluster.scale import Inputs, bases, saturated, scale, table
from cidm_ops.cluster.tasks import read_tasks, waves_of
from cidm_ops.cluster.versions import check_versions, versions_here

GOOD = {"images": "photos/rex", "class_word": "dog"}


def read(*lines: object, folder="/data"):
    from pathlib import Path

    return read_tasks("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), Path(folder))


def test_a_line_has_what_the_command_takes():
    (line,), broken, remarks = read({**GOOD, "set": {"min_snr": 5, "checkpointing": True}, "steps": 9, "gpus": 0.5, "seed": 0})
    assert not broken and not remarks
    assert (line.name, line.images, line.number) == ("rex", "/data/photos/rex", 1)
    assert line.set == ["min_snr=5", "checkpointing=true"] and line.settings == {"steps": 9}
    assert line.needs((1.0, 0.0, 4.0)) == (1.0, 0.5, 4.0)


def test_addresses_stay_and_comments_and_empty_lines_are_skipped():
    lines, broken, _ = read("# ours", "", {**GOOD, "images": "s3://bucket/tom/"}, "   ")
    assert [(line.name, line.images, line.number) for line in lines] == [("tom", "s3://bucket/tom/", 3)] and not broken


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON (Expecting property name enclosed in double quotes): expected one object a line"),
        ("[1]", "'[1]': expected an object"),
        ({**GOOD, "imges": "x"}, "'imges' is no part of a task: did you mean 'images'?"),
        ({**GOOD, "colour": "x"}, "'colour' is no part of a task: expected images, class_word"),
        ({"images": "x"}, "'class_word' is missing"),
        ({"class_word": "dog", "images": " "}, "'images' is missing"),
        ({**GOOD, "steps": "9"}, "'steps' is \"9\": expected a whole number"),
        ({**GOOD, "steps": True}, "'steps' is true: expected a whole number"),
        ({**GOOD, "steps": 0}, "'steps' is 0: expected more than 0"),
        ({**GOOD, "seed": -1}, "'seed' is -1: expected 0 or more"),
        ({**GOOD, "memory": float("inf")}, "'memory' is inf: expected a number"),
        ({**GOOD, "style": 1}, "'style' is 1: expected true or false"),
        ({**GOOD, "set": ["rank"]}, "'set' has 'rank': expected name=value"),
        ({**GOOD, "name": "a b"}, "concept name 'a b': expected 1 to 64 letters"),
        ("[" * 100_000, "no JSON ("),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_there(line, said):
    lines, broken, _ = read({**GOOD, "name": "one"}, line, {**GOOD, "name": "two"})
    assert [one.name for one in lines] == ["one", "two"] and broken.keys() == {2}
    assert broken[2].startswith(said), broken[2]


def test_the_same_task_twice_is_one_and_another_of_that_name_is_refused():
    lines, broken, remarks = read(GOOD, GOOD, {**GOOD, "steps": 9}, {**GOOD, "name": "Rex"})
    assert [line.number for line in lines] == [1] and broken.keys() == {3, 4}
    assert remarks == ["line 2 is the task of line 1 again: it is done once"]
    assert "is on line 1 already" in broken[3] and "in case only" in broken[4]


def test_waves_are_in_the_order_of_the_file_and_what_is_kept_apart_from_nothing_goes_along():
    lines, _, _ = read(*({**GOOD, "name": f"c{i}", "method": "infusion" if i in (1, 3) else "cidm"} for i in range(7)))
    named = [[line.name for line in wave] for wave in waves_of(lines, 2, ["infusion"])]
    assert named == [["c0", "c1", "c2", "c3"], ["c4", "c5"], ["c6"]]
    assert len(waves_of(lines, 1, ["cidm", "infusion"])) == 1


def test_other_versions_are_named():
    here = versions_here()
    check_versions(here)
    other = {**here, "torch": "1.0", "cidm": "abc"}
    with pytest.raises(ValueError) as said:
        check_versions(here, other)
    assert str(said.value).startswith(f"{platform.node()} has cidm abc instead of {here['cidm']}, torch 1.0 instead of ")


def test_the_board_counts_and_tells():
    told = []
    board = Board(["a", "b", "c", "d"], told.append)
    board.end("a", LEARNED)
    board.end("b", FOUND)
    board.end("c", ASIDE, "no pictures")
    assert told == ["a", "b", "c"] and board.aside == {"c": "no pictures"}
    assert board.line().startswith("2 of 4 done (1 were there), 0 running, 1 set aside, ")
    record = board.record()
    assert (record["done"], record["found"], record["waiting"], record["set_aside"]) == (1, 1, 1, 1)
    assert record["tasks"]["c"]["reason"] == "no pictures"
    assert [duration(s) for s in (45, 300, 12_000, 400_000)] == ["45 s", "5 min", "3 h 20 min", "5 days"]


@pytest.mark.parametrize("terminal", [False, True])
def test_how_far_it_is_stands_on_the_terminal_and_in_a_file(tmp_path, monkeypatch, terminal):
    told = io.StringIO()
    told.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", told)
    board = Board(["rex", "tom"])
    with shown(board, tmp_path / "state.json"):
        at = SimpleNamespace(piece=SimpleNamespace(name="rex", tries=0), machine="one", progress=(7, 50))
        board.watch([at])
        board.watch([at])
        board.end("rex", LEARNED)
    said = told.getvalue()
    if terminal:
        assert "rex  one  7/50  try 1" in said and "\x1b[2A\x1b[J" in said, "the table is drawn over itself"
    else:
        assert said.startswith("<rex> done; 1 of 2 done, 0 running, 0 set aside, ") and "\x1b" not in said
    state = json.loads((tmp_path / "state.json").read_text())
    assert (state["done"], state["waiting"], state["tasks"]["rex"]["step"]) == (1, 1, 7)


def test_the_calculation_grows_as_it_should_and_names_what_gives_way():
    inputs = Inputs()
    assert saturated(inputs) == (80, 320)
    assert bases(inputs, 320) == bases(inputs, 10_000) < 0.12, "bases stop growing when every layer is full"
    small, large = scale(inputs, 1_000, 10), scale(inputs, 1_000_000, 10)
    assert large.files == 1000 * small.files and large.opening == pytest.approx(1000 * small.opening)
    assert large.adding == pytest.approx(1e6 * small.adding), "adding all is quadratic"
    assert [said.partition(":")[0] for said in small.gives] == ["apartness"]
    assert [said.partition(":")[0] for said in large.gives] == ["apartness", "memory", "reading", "adding", "the index"]
    assert scale(inputs, 1_000, 100, wave=1).learning == pytest.approx(100 * scale(inputs, 1_000, 100).learning)
    assert "1,000,000" in table(inputs, [large]) and not scale(inputs, 50, 1).gives
