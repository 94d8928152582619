"""Options of learning that make a concept obey: where in a caption it acts, and how far it depends on the rest of it."""

import random
from dataclasses import replace

import pytest
import torch
from test_training import RECIPE, Stopped, dataset, gradients, learn, task_of

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.export import remarks_on_export
from cidm_ops.engines.diffusers import load
from cidm_ops.hub import intercept
from cidm_ops.painting.compose import AggregationConfig, compose, encode, scene_beside
from cidm_ops.painting.config import BY_KIND, EVERYWHERE, WORDS, WORDS_AND_END
from cidm_ops.painting.paint import SamplingConfig, paint, predictor
from cidm_ops.painting.scope import scope_of
from cidm_ops.training.methods import cidm
from cidm_ops.training.methods.baselines import DistilledLora, SelfRegularizedLora
from cidm_ops.training.trainer import Trainer

LIMITED = RECIPE.update(reach=WORDS_AND_END)
TEXT = "a <rex.1> <rex.2> on the beach"


@pytest.fixture(scope="module")
def backbone(tiny_sd1):
    return load(tiny_sd1)


@pytest.fixture(scope="module")
def taught(backbone):
    """A run that has learned at its words and the end of the text for some steps."""
    run = Trainer(backbone, dataset(), task_of(LIMITED))
    with run.attach():
        for _ in range(5):
            run.advance()
    return run


def noised(backbone):
    return torch.randn(1, *backbone.family.latent_shape(64, 64), generator=torch.Generator().manual_seed(0)), torch.tensor([600])


def keys(backbone, run, text):
    """The keys and values of every layer for a text, while a run's concept acts or (without a run) not."""
    seen = []

    def keep(at, out):
        seen.extend([at.k, at.v])
        return out

    x, t = noised(backbone)
    with torch.no_grad(), intercept(backbone.cross_attention, keep):
        run.learner.answer(x, t, [text])
    return seen


def test_other_words_are_the_bases_while_it_learns(backbone, taught):
    """The keys and values of words before and after the concept's do not change by a bit; those of its own and of the end do."""
    with taught.attach():
        acting = keys(backbone, taught, TEXT)
    resting = keys(backbone, taught, TEXT)  # the same text, without factors
    own = taught.learner.mark(TEXT).bool()
    assert own.sum() > 2 and not own[:2].any() and not own[4:7].any() and own[2:4].all() and own[-1]
    for a, b in zip(acting, resting, strict=True):
        assert torch.equal(a[:, ~own], b[:, ~own]) and (a[:, own] - b[:, own]).abs().amax(-1).min() > 0


def test_a_text_without_the_concept_is_the_bases(backbone, taught):
    with taught.attach():
        acting = keys(backbone, taught, "a cat on the beach")
    assert all(torch.equal(a, b) for a, b in zip(acting, keys(backbone, taught, "a cat on the beach"), strict=True))


def test_it_is_painted_with_what_it_learned_with(backbone, taught, tmp_path):
    bank = Bank(tmp_path).add(taught.concept())
    assert bank.get("rex").reach == WORDS_AND_END and scope_of(bank.get("rex")) == WORDS_AND_END
    x, t = noised(backbone)
    with torch.no_grad(), taught.attach():
        learned = taught.learner.answer(x, t, [TEXT])

    def painted(scope):
        said = compose(backbone, bank, "a <rex> on the beach", AggregationConfig(scope=scope))
        with torch.no_grad():
            text = encode(backbone, said)
            return predictor(backbone, scene_beside([[said]], AggregationConfig(scope=scope)))(x, t, text.rows, text.pooled, 1)

    torch.testing.assert_close(painted(BY_KIND), learned, rtol=1e-4, atol=1e-5)
    assert (painted(EVERYWHERE) - learned).abs().max() > 1e-3  # the setting of the painter goes before


def test_a_preview_is_what_will_be_painted(backbone, taught, tmp_path):
    bank = Bank(tmp_path).add(taught.concept())
    with taught.attach():
        preview = taught.preview("a <rex> on the beach", seed=3, steps=2, guidance=3.0)
    noise = torch.randn(1, *taught.batches.draw(0, False, random.Random(0))[0].shape, generator=torch.Generator().manual_seed(3))
    picture, _ = paint(backbone, bank, "a <rex> on the beach", noise, SamplingConfig(2, 3.0))
    torch.testing.assert_close(preview, picture[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"reach": EVERYWHERE}, {"dependence": 0.0}])
def test_off_it_is_the_run_of_before_bit_for_bit(backbone, settings):
    plain, again = (gradients(Trainer(backbone, dataset(), task_of(recipe))) for recipe in (RECIPE, RECIPE.update(**settings)))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("recipe", [LIMITED, RECIPE.update(dependence=0.5), LIMITED.update(dependence=0.5)])
def test_a_stopped_run_goes_on_bit_for_bit(backbone, tmp_path, recipe):
    _, whole, losses, _ = learn(Bank(tmp_path / "whole"), backbone, recipe=recipe)
    with pytest.raises(Stopped):
        learn(Bank(tmp_path / "stopped"), backbone, recipe=recipe, stop=7)
    _, stopped, again, _ = learn(Bank(tmp_path / "stopped"), backbone, recipe=recipe)
    assert losses == again and all(torch.equal(f.up, stopped.factors[n].up) for n, f in whole.factors.items())


def at_noise(monkeypatch, least):
    """Has the dependence be computed from this part of the timesteps on."""
    monkeypatch.setattr(cidm, "DEPENDENCE_FROM", least)


def test_dependence_is_learned_in_every_second_step_at_much_noise(backbone, monkeypatch):
    """With a text that has a rest: all captions of the data do."""

    def differs(step, weight):
        runs = [Trainer(backbone, dataset(), task_of(RECIPE.update(dependence=w))) for w in (0.0, weight)]
        for run in runs:
            run.learner.ups[0].data.fill_(0.1)
            run.losses = [1.0] * step
        return any(not torch.equal(a, b) for a, b in zip(*map(gradients, runs), strict=True))

    at_noise(monkeypatch, 0.0)
    assert differs(0, 1.0) and not differs(1, 1.0) and differs(2, 1.0)
    at_noise(monkeypatch, 2.0)
    assert not differs(0, 1.0)


def test_captions_that_say_nothing_else_have_no_dependence(backbone, monkeypatch):
    at_noise(monkeypatch, 0.0)
    data = replace(dataset(), captions=["a dog"] * 3)
    plain, again = (gradients(Trainer(backbone, data, task_of(RECIPE.update(templates=("{}",), dependence=w)))) for w in (0.0, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_checkpointing_changes_no_gradient(backbone, monkeypatch):
    """Layers are computed again after the single predictions, and read the caption then."""
    at_noise(monkeypatch, 0.0)
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    recipe = LIMITED.update(dependence=1.0, attention=0.5)
    runs = [Trainer(backbone, dataset(masks=[half] * 3), task_of(recipe.update(checkpointing=on))) for on in (False, True)]
    for plain, again in zip(*map(gradients, runs), strict=True):
        torch.testing.assert_close(plain, again)


def test_captions_of_any_length_share_a_batch(backbone, tmp_path):
    data = dataset(((64, 64),) * 3)
    tags = "a dog, " + ", ".join(f"tag{i}" for i in range(100))
    data.captions = [tags, "a dog on the beach", ""]
    learned = learn(Bank(tmp_path), backbone, data, recipe=LIMITED.update(dependence=0.5, dropout=0.2, batch=3))
    assert len(learned.losses) == RECIPE.steps and all(loss > 0 for loss in learned.losses)


def test_at_the_words_alone_nothing_is_learned_and_baselines_act_everywhere(backbone):
    with pytest.raises(ValueError, match="reach 'words': expected one of by kind, everywhere, words and end"):
        RECIPE.update(reach=WORDS)
    for method in (DistilledLora(), SelfRegularizedLora()):
        with pytest.raises(ValueError, match="reach 'words and end': this method's factors act at all words, expected everywhere"):
            Trainer(backbone, dataset(), task_of(LIMITED), method=method)


def test_who_exports_it_learns_that_others_paint_it_otherwise(taught):
    concept = taught.concept()
    (said,) = remarks_on_export([concept])
    assert said.startswith("<rex> was learned to act at its own words") and "otherwise" in said
    assert remarks_on_export([replace(concept, training={**concept.training, "reach": BY_KIND})]) == []
    assert remarks_on_export([replace(concept, training={})]) == []


def test_a_reach_of_a_newer_version_is_named(taught):
    concept = taught.concept()
    new = replace(concept, training={**concept.training, "reach": "where it stands"})
    with pytest.raises(ValueError, match="<rex> was learned with reach 'where it stands', which is not known here"):
        scope_of(new)
    assert scope_of(new, EVERYWHERE) == EVERYWHERE
