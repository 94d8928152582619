"""Identity by parts beside IA: in `cidm evaluate` and in the benchmark, of Doodle's own things in flat pictures, and of nothing else."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_command_line import cidm, refused  # noqa: F401

from cidm_ops.bank.bank import Bank
from cidm_ops.benchmarks.quality.figures import figures, row_of
from cidm_ops.benchmarks.quality.methods import METHODS
from cidm_ops.benchmarks.quality.page import page, table
from cidm_ops.benchmarks.quality.protocol import Bench
from cidm_ops.benchmarks.quality.suite import doodle_suite
from cidm_ops.doodle.files import TEN
from cidm_ops.doodle.training.parts import save_judge
from cidm_ops.engines.diffusers import load
from cidm_ops.engines.parts import PARTS, PartsJudge, load_judge
from cidm_ops.engines.towers import load_tower
from cidm_ops.evaluation.parts import is_flat


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory):
    """A judge that was never trained."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("judge") / "parts.safetensors"
    save_judge(PartsJudge(8), file)
    return file


def test_evaluate_says_identity_by_parts(cidm, judge_file, tmp_path):  # noqa: F811
    argv = ["evaluate", "--base", "doodle", "--bank", TEN, "--concepts", "bear", "ink", "--samples", 1, "--steps", 1, "--judge", judge_file]
    code, out, err = cidm(*argv, "--out", tmp_path / "out")
    assert code == 0, err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    bear = scores["concepts"]["bear"]
    assert set(bear["parts_right"]) == {*PARTS} - {"marking_colour"}, "the bear has no pattern"
    assert 0 <= bear["parts"] <= 1 and "parts" not in scores["concepts"]["ink"] and scores["mean"]["parts"] == bear["parts"]
    assert [line.split()[0] for line in out if line.startswith(("IA", "TA", "parts"))] == ["IA", "TA", "parts"]
    assert "Identity by parts" in (tmp_path / "out" / "report.html").read_text()


def test_evaluate_refuses_a_judge_that_has_nothing_to_judge(cidm, judge_file, tmp_path):  # noqa: F811
    argv = ["evaluate", "--base", "doodle", "--bank", TEN, "--judge", judge_file, "--samples", 1, "--steps", 1, "--out", tmp_path / "out"]
    nothing = "--judge reads the parts of Doodle's own things in flat pictures, and the prompts of"
    assert f"{nothing} ink ask for none" in refused(cidm(*argv, "--concepts", "ink"))
    own = tmp_path / "photos" / "bear"  # somebody's own bear, which happens to be called like Doodle's
    own.mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (64, 64), (40 * i, 90, 10)).save(own / f"{i}.png")
    assert f"{nothing} bear ask for none" in refused(cidm(*argv, "--concepts", "bear", "--references", tmp_path / "photos"))
    assert "no such judge of parts" in refused(cidm(*argv[:6], tmp_path / "none.safetensors", *argv[7:], "--concepts", "bear"))


def test_strips_are_shuffled_and_their_key_is_right(cidm, tmp_path):  # noqa: F811
    bank = Bank(tmp_path / "bank")
    for name in ("bear", "ink"):
        bank = bank.add(Bank(TEN).get(name))
    code, out, err = cidm("doodle", "strips", "--bank", tmp_path / "bank", "--out", tmp_path / "out")
    assert code == 0, err
    told = json.loads((tmp_path / "out" / "key.json").read_text())
    assert sorted(told["key"].values()) == ["A"] * 4 + ["B"] * 4 and told["names"] == {"A": "bear", "B": "ink"}
    assert list(told["key"].values()) != ["A"] * 4 + ["B"] * 4
    assert {picture.name for picture in (tmp_path / "out").glob("*.png")} == {"pictures.png", "individuals.png"}
    assert "learn two of dog" in refused(cidm("doodle", "strips", "--bank", tmp_path / "none", "--out", tmp_path / "out"))


def test_the_benchmark_scores_the_flat_pictures_of_things(judge_file, tmp_path):
    suite = doodle_suite(load("doodle"), load_tower("doodle"), tasks=6, steps=1)
    suite = replace(suite, lessons=[suite.lessons[0], suite.lessons[5]])  # the dog and a painting
    bench = Bench(tmp_path, suite, judge=load_judge(judge_file))
    bench.claim()
    scores = bench.scores("drawn", METHODS["drawn"], 0)
    flat = [prompt for prompt in suite.lessons[0].prompts if is_flat(prompt)]
    assert len(scores["dog"]["parts"]) == len(flat) == 15 and "parts" not in scores["painting"]
    rows = {"drawn": row_of(bench, "drawn", METHODS["drawn"], [0])}
    found = figures(rows) | {"seeds": [0]}
    assert "drawn_parts" in found and "parts" in table(rows, suite).splitlines()[0]
    page(tmp_path, rows, suite, found)
    with pytest.raises(ValueError, match="holds results with judge .*, now it is None: give another --folder"):
        Bench(tmp_path, suite).claim()
