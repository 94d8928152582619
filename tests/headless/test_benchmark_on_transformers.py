"""The benchmark and `cidm evaluate` on a transformer in which all layers read one text: what cannot be there is named."""

from dataclasses import replace

import pytest
import torch
from test_command_line import cidm, refused  # noqa: F401
from test_doodle_transformer import base, folder  # noqa: F401

from cidm_ops.adapters import attach_parts
from cidm_ops.bank.bank import Bank
from cidm_ops.benchmarks.quality.methods import ABLATIONS, METHODS, TRAININGS, mixture
from cidm_ops.benchmarks.quality.protocol import Bench, run_all
from cidm_ops.benchmarks.quality.suite import doodle_suite
from cidm_ops.benchmarks.quality.wanted import methods_on
from cidm_ops.engines.towers import load_tower
from cidm_ops.models.doodle_transformer import DOODLE_TRANSFORMER
from cidm_ops.models.sd import DOODLE
from cidm_ops.painting.compose import AggregationConfig, ConceptMix
from cidm_ops.painting.composition import Composition
from cidm_ops.painting.paint import SamplingConfig, paint, paint_latents, unit_noise
from cidm_ops.training.method import Task
from cidm_ops.training.trainer import Trainer

JOINT = ["drawn", "base", "alone", "finetune", "lora_m", "orthogonal_adaptation", "cidm"]
EVERY = METHODS | ABLATIONS


@pytest.fixture(scope="module")
def bench(base, tmp_path_factory):  # noqa: F811
    """Two of Doodle's tasks, learned for three steps each, loudly."""
    suite = doodle_suite(base, load_tower("doodle"), tasks=2, steps=1)
    lessons = [replace(lesson, prompts=lesson.prompts[:2]) for lesson in suite.lessons]
    quick = suite.recipe.update(steps=3, lr=0.05, rank=4)
    return Bench(tmp_path_factory.mktemp("bench"), replace(suite, lessons=lessons, recipe=quick))


def test_what_can_be_compared_there_is_and_the_rest_is_named():
    found, others = methods_on(DOODLE_TRANSFORMER, METHODS, chosen=False)
    assert list(found) == JOINT and others == [name for name in METHODS if name not in JOINT]
    assert methods_on(DOODLE, METHODS, chosen=True) == (METHODS, [])
    with pytest.raises(
        ValueError, match="method 'lwf' is none for Doodle as a transformer.* expected some of drawn, base, alone, finetune"
    ):
        methods_on(DOODLE_TRANSFORMER, {"cidm": METHODS["cidm"], "lwf": METHODS["lwf"]}, chosen=True)
    able = {name for name, method in ABLATIONS.items() if method.is_joint}
    assert {"no_consolidation_sum", "corrected_sum", "orthogonal_exact"} <= able
    assert not able & {"soft_everywhere", "shared_exact", "cidm_words_and_end", "where_it_stands", "late_start", "one_row_exact"}


def test_every_row_is_learned_painted_and_scored(bench):
    names = [name for name in JOINT if name != "drawn"] + ["no_consolidation_sum", "corrected_sum"]
    methods = {name: EVERY[name] for name in names}
    run_all(bench, methods, [0], ())
    for name, method in methods.items():
        scores = bench.scores(name, method, 0)
        assert list(scores) == ["dog", "duck"] and all(len(score["ia"]) == len(score["ta"]) == 2 for score in scores.values())


def test_the_default_paints_as_its_user_does_and_is_apart_from_what_came_before(bench, base):  # noqa: F811
    learned, lesson = bench.learn("corrected", 0), bench.suite.lessons[1]
    own = bench.paint(METHODS["cidm"], learned, lesson, 0, 1.0)[:1]
    noise = unit_noise(base.family, 0, 2, 128, 128)[:1]
    bank = Bank(bench.folder / "banks" / "corrected-0")
    config = SamplingConfig(1, bench.suite.sampling.guidance)
    torch.testing.assert_close(own, paint(base, bank, lesson.prompt(lesson.prompts[0]), noise, config)[0])
    first = bench.learn("apart", 0)["dog"]
    assert all(torch.equal(f.up, first.factors[n].up) for n, f in learned["dog"].factors.items()), "the first has none before it"
    assert any(not torch.equal(f.up, bench.learn("apart", 0)["duck"].factors[n].up) for n, f in learned["duck"].factors.items())


def test_one_lora_goes_on_from_the_task_before(bench, base):  # noqa: F811
    before, lesson = bench.learn("apart", 0)["dog"], bench.suite.lessons[1]
    task = Task(name=lesson.name, class_word=lesson.class_word, config=bench.suite.recipe.update(mode="off"))
    method = TRAININGS["finetune"].method_on(base.family, bench.folder)
    began = Trainer(base, lesson.data(False), task, method=method, earlier=[before]).learner.factors()
    assert all(torch.equal(f.up, before.factors[n].up) and torch.equal(f.down, before.factors[n].down) for n, f in began.items())


def test_all_at_full_weight_are_the_sum_of_their_changes(bench, base):  # noqa: F811
    learned = bench.learn("apart", 0)
    mixed = mixture("sum", base, learned, "duck", "a <duck>")
    assert mixed.text == "a duck duck"
    noise, config = unit_noise(base.family, 3, 1, 64, 64), SamplingConfig(1, 1.0)
    got = paint_latents(base, Composition(mixed, (), AggregationConfig()), noise, config)
    with attach_parts(base.modules, base.layers, learned["dog"].factors), attach_parts(base.modules, base.layers, learned["duck"].factors):
        want = paint_latents(base, Composition(ConceptMix(mixed.text), (), AggregationConfig()), noise, config)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for merge in ("soft", "composite of two"):
        with pytest.raises(ValueError, match=f"merge '{merge}': expected one of exact, uniform, sum"):
            mixture(merge, base, learned, "duck", "a <duck>")


def test_the_commands_take_such_a_base(cidm, folder, tmp_path):  # noqa: F811
    place = folder / "transformer"
    argv = ["benchmark", "--base", place, "--tasks", 1, "--steps", 1, "--seeds", 0, "--no-curves", "--set", "steps=1", "--folder", tmp_path]
    code, out, err = cidm(*argv, "--methods", "base", "cidm")
    assert code == 0 and any("CIDM corrected, exact routing" in line for line in out), err
    assert "'infusion' is none for Doodle as a transformer" in refused(cidm(*argv, "--methods", "infusion"))
    asked = ["evaluate", "--base", place, "--bank", tmp_path / "banks/corrected-0", "--steps", 1, "--samples", 1, "--out", tmp_path / "out"]
    code, out, err = cidm(*asked, "--judge", "doodle")
    assert code == 0 and any("V1 dog" in line for line in out), err
    assert len(list((tmp_path / "out/samples").rglob("*.png"))) == 4
    (tmp_path / "groups.txt").write_text("all: a <dog>\n")
    assert "--fisher compares what layers read" in refused(cidm(*asked, "--fisher", tmp_path / "groups.txt"))
    said = refused(cidm(*asked[:-1], tmp_path / "soft", "--mode", "soft"))
    assert "mode 'soft' compares what each layer reads" in said
