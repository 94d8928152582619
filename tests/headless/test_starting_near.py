"""Words that begin as those of the nearest concept of the bank: which that is, that a run goes on exactly, and what cannot be."""

import json

import pytest
import torch
from safetensors import safe_open
from test_training import RECIPE, Stopped, dataset, learn, same, task_of

from cidm_ops.bank.bank import Bank
from cidm_ops.engines.diffusers import load
from cidm_ops.training.checkpoint import checkpoint_file
from cidm_ops.training.method import Task
from cidm_ops.training.methods import cidm, configure, nearest
from cidm_ops.training.task import learn_into
from cidm_ops.training.trainer import Trainer

NEAR = RECIPE.update(start="nearest")


@pytest.fixture(scope="module")
def backbone(tiny_sd1):
    return load(tiny_sd1)


@pytest.fixture(scope="module")
def kin(backbone, tmp_path_factory):
    """A bank with two dogs and a cat, learned from different pictures."""
    bank = Bank(tmp_path_factory.mktemp("kin"))
    for number, (name, kind) in enumerate((("tom", "cat"), ("ben", "dog"), ("max", "dog"))):
        data = dataset(((64, 64),) * (number + 1))
        data.captions = [f"a {kind}"] * len(data)
        task = Task(name=name, class_word=kind, config=RECIPE.update(seed=number))
        bank = learn_into(bank, backbone, data, task).bank
    return bank


def errors_of(monkeypatch, by_name):
    """Has the words of a concept (or none) err by so much; counts how often that is asked."""
    asked = []

    def error(trainer):
        rows = trainer.learner.tokens["clip_l"].detach()
        near = {c.name for c in trainer.earlier if c.tokens["clip_l"].shape == rows.shape and torch.equal(c.tokens["clip_l"], rows)}
        asked.append(next(iter(near), ""))
        return by_name[asked[-1]]

    monkeypatch.setattr(nearest, "mean_error", error)
    return asked


def test_the_words_begin_as_those_that_err_least(backbone, kin, monkeypatch):
    asked = errors_of(monkeypatch, {"": 3.0, "ben": 2.0, "max": 1.0})
    earlier = [kin.get(name) for name in kin.names]
    run = Trainer(backbone, dataset(), task_of(NEAR), earlier=earlier)
    plain, limit = run.learner.norm, run.learner.norm_stop
    with run.attach():
        run.method.prepare(run)
    assert asked == ["", "ben", "max"], "the cat is of another class"
    assert run.learner.began_as == "max" and torch.equal(run.learner.tokens["clip_l"], kin.get("max").tokens["clip_l"])
    assert all(f.up.abs().max() == 0 for f in run.learner.factors().values()), "the factors begin at zero as ever"
    assert run.learner.norm_stop - limit == pytest.approx(run.learner.norm - plain), "they may grow by as much as ever"
    assert run.learner.words_learn and run.concept().training["began_as"] == "max"


def test_where_none_does_better_they_begin_as_ever_bit_for_bit(backbone, kin, monkeypatch):
    errors_of(monkeypatch, {"": 0.5, "ben": 2.0, "max": 1.0})
    earlier = [kin.get(name) for name in kin.names]
    runs = [Trainer(backbone, dataset(), task_of(recipe), earlier=earlier) for recipe in (RECIPE, NEAR)]
    for run in runs:
        with run.attach():
            run.advance()
    plain, near = ([p.detach() for p in run.learner.parameters()] for run in runs)
    assert all(torch.equal(a, b) for a, b in zip(plain, near, strict=True))
    assert "began_as" not in runs[1].concept().training and runs[1].learner.norm_stop == NEAR.method.norm_stop


def test_the_error_is_the_same_at_every_call_and_tells_words_apart(backbone, kin):
    run, before = Trainer(backbone, dataset(), task_of(NEAR), earlier=[kin.get(name) for name in kin.names]), torch.get_rng_state()
    with run.attach():
        plain = nearest.mean_error(run)
        assert nearest.mean_error(run) == plain and plain > 0 and torch.equal(torch.get_rng_state(), before)
        run.learner.copy_words(kin.get("max").tokens)
        assert nearest.mean_error(run) != plain


@pytest.mark.parametrize("stop", [1, 7])
def test_a_stopped_run_goes_on_bit_for_bit(backbone, kin, tmp_path, stop, monkeypatch):
    errors_of(monkeypatch, {"": 3.0, "ben": 1.0, "max": 2.0})
    files, losses = [], []
    for folder, at in (("whole", 0), ("stopped", stop)):
        bank = Bank(tmp_path / folder).add(*(kin.get(name) for name in kin.names))
        if at:
            with pytest.raises(Stopped):
                learn(bank, backbone, recipe=NEAR, stop=at)
            with safe_open(checkpoint_file(bank, "rex"), "pt") as state:
                assert json.loads(state.metadata()["facts"])["began_as"] == "ben"
            monkeypatch.setattr(cidm, "begin_nearest", lambda trainer: pytest.fail("a run that goes on has begun"))
        learned = learn(bank, backbone, recipe=NEAR)
        files.append(learned.bank.file("rex"))
        losses.append(learned.losses)
    assert losses[0] == losses[1] and same(*files)
    assert learned.concept.training["began_as"] == "ben" and learned.concept.training["start"] == "nearest"


def test_the_class_word_is_the_start_of_before_and_of_the_same_digest(backbone, tmp_path):
    first = learn(Bank(tmp_path), backbone)
    again = learn(first.bank, backbone, recipe=RECIPE.update(start="class word"))
    assert again.concept.training["task"] == first.concept.training["task"], "found as learned already"


def test_a_bank_without_one_of_the_class_is_told(backbone, tmp_path):
    learned = learn(Bank(tmp_path), backbone, recipe=NEAR)
    assert any("the bank has no earlier 'dog'" in warning for warning in learned.warnings)
    assert "began_as" not in learned.concept.training


def test_one_that_goes_on_from_what_it_knows_is_told_that_the_start_has_no_part(backbone, kin, tmp_path):
    bank = Bank(tmp_path).add(kin.get("ben"), kin.get("max"))
    learned = learn(bank, backbone, name="max", recipe=NEAR, existing="continue")
    assert any("'max' goes on from what it knows" in warning for warning in learned.warnings)


def test_what_cannot_be_is_refused(backbone):
    with pytest.raises(ValueError, match="start 'mean': expected one of class word, nearest"):
        RECIPE.update(start="mean")
    joint = Task(name="rex", class_word="dog", others={"tom": "cat"}, config=configure("disendiff", start="nearest"))
    with pytest.raises(ValueError, match="several concepts have no single nearest one"):
        Trainer(backbone, dataset(), joint)
