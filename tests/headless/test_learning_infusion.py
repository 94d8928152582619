"""Infusion through diffusers: exact identities, and a run that stops anywhere and goes on exactly."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from cidm_ops.__main__ import main
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.engines.diffusers import load
from cidm_ops.method.regions import RegionMask
from cidm_ops.models.sd import SD1
from cidm_ops.painting.compose import AggregationConfig, ParsedPrompt, compose, encode, mix, residual_masks, row_plan
from cidm_ops.painting.config import STREAMS, ResidualConfig
from cidm_ops.painting.paint import SamplingConfig, paint, predictor, unit_noise
from cidm_ops.painting.scene import Scene
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.method import Batch, Task
from cidm_ops.training.methods import configure
from cidm_ops.training.objective import add_noise
from cidm_ops.training.task import learn_into
from cidm_ops.training.trainer import Trainer

RECIPE = configure("infusion", steps=6, batch=2, accumulate=1, seed=3)


@pytest.fixture(scope="module", params=["tiny_sd1", "tiny_sdxl"])
def backbone(request):
    return load(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def small(tiny_sd1):
    return load(tiny_sd1)


def concept(backbone, name, class_word="dog", scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    widths = {f"{n}.{part}": m.to_v.out_features for n, m in backbone.cross_attention.items() for part in ("to_v", "to_k")}
    residuals = {n: scale * torch.randn(width, generator=g) for n, width in widths.items()}
    return Concept(
        name=name, class_word=class_word, architecture=backbone.architecture, fingerprint=backbone.fingerprint, residuals=residuals
    )


def dataset(masks=True):
    pictures = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    area = torch.zeros(1, 64, 64)
    area[:, 16:48, 16:48] = 1
    return Dataset(pictures, [""] * 3, [area] * 3 if masks else ())


def task_of(config):
    return Task(name="rex", class_word="dog", config=config)


def painted(backbone, bank, prompt, **how):
    config = SamplingConfig(3, infusion=ResidualConfig(**how))
    return paint(backbone, bank, prompt, unit_noise(SD1, 1, 2, 64, 64), config)[0]


def test_nothing_to_add_is_the_base(backbone, tmp_path):
    bank = Bank(tmp_path).add(concept(backbone, "nil", scale=0.0)).add(concept(backbone, "rex", scale=10.0))
    base = painted(backbone, bank, "a dog on the beach")
    for stream in STREAMS:
        for prompt in ("a <nil> on the beach", "a <rex:0> on the beach"):
            assert torch.equal(painted(backbone, bank, prompt, stream=stream), base)
        assert torch.equal(painted(backbone, bank, "a <rex> on the beach", stream=stream, start=1.0, layers="up_blocks"), base)
    new = [painted(backbone, bank, "a <rex> on the beach", stream=stream) for stream in STREAMS]
    assert not any(torch.equal(a, b) for a, b in zip(new, [base, *new[:2]], strict=True))
    assert torch.equal(painted(backbone, bank, "a <rex> on the beach"), new[0])
    assert torch.equal(painted(backbone, bank, "a dog on the beach"), base), "nothing stays behind"


def test_the_foundation_is_the_base_whatever_the_residual(backbone, tmp_path):
    bank = Bank(tmp_path).add(concept(backbone, "rex", scale=5.0))
    mixture = compose(backbone, bank, "a <rex> on the beach")
    text = encode(backbone, mixture)
    x, t = unit_noise(SD1, 1, 1, 64, 64), torch.tensor([500])
    seen = []

    with torch.no_grad():
        want = backbone.predict(x, t, text.context, text.pooled)
        predict = predictor(backbone, Scene())
        watch = backbone.unet.register_forward_hook(lambda module, args, out: seen.append(out.sample))
        got = predict(x, t, text.rows, text.pooled, 1)
        watch.remove()
    assert len(seen[0]) == 2 and torch.allclose(seen[0][1:], want, atol=2e-6) and not torch.allclose(got, want, atol=1e-2)


def test_positions_come_from_the_tokens(small, tmp_path):
    bank = Bank(tmp_path).add(concept(small, "rex")).add(concept(small, "ted", "teddy bear", seed=1)).add(concept(small, "ned", seed=2))
    mixture = compose(small, bank, "(a <rex:0.5>, red)s dog; <ted>'s <ned> and <rex>!")
    charges = [*mixture.residuals.values()]
    ids = small.tokenize(mixture.text).flatten()
    dog, teddy, bear = (int(small.tokenize(word)[0, 1]) for word in ("dog", "teddy", "bear"))
    found = [ids[c.marks.bool()].tolist() for c in charges]
    assert found == [[dog, dog], [teddy, bear], [dog]], "in the order learned"
    assert not any((a.marks * b.marks).any() for a, b in zip(charges, charges[1:], strict=False))
    assert (ids == dog).sum() == 4, "a class word without a handle stays plain"
    first = next(iter(bank.get("rex").residuals))
    assert torch.equal(charges[0].residuals[first] * 2, bank.get("rex").residuals[first])


def test_low_rank_and_infusion_concepts_share_a_prompt_and_others_refuse(small, tmp_path):
    bank = Bank(tmp_path).add(concept(small, "rex"))
    config = configure("cidm", steps=2, lr=1e-2, lr_tokens=1e-2)
    data = Dataset(dataset(False).pictures, ["cat"] * 3)
    bank = learn_into(bank, small, data, Task(name="tom", class_word="cat", config=config)).bank
    both = painted(small, bank, "a <tom> and a <rex>")
    for other in ("a <tom> and a dog", "a cat and a <rex>"):
        assert not torch.allclose(both, painted(small, bank, other), atol=1e-3)
    assert torch.allclose(painted(small, bank, "a <tom> and a <rex:0>"), painted(small, bank, "a <tom> and a dog"), atol=1e-5)
    with pytest.raises(ValueError, match="<rex> is an Infusion concept"):
        mix(small, bank, "a <rex>")
    soft = mix(small, bank, "a cat", AggregationConfig(mode="soft"))
    assert [c.name for c in soft.concepts] == ["tom"], "modes that weigh every concept leave residuals out"


def test_a_region_limits_a_concept(small, tmp_path):
    bank = Bank(tmp_path).add(concept(small, "rex"))
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    masks = residual_masks(bank, [("a <rex>", RegionMask(left, 0.5)), ("<rex>", RegionMask(torch.zeros(16, 16)))])
    assert masks["rex"].shape == (16, 16) and masks["rex"].mean() == 0.25
    with pytest.raises(ValueError, match="not in the prompt"):
        compose(small, bank, "a dog", masks=masks)
    text = encode(small, ParsedPrompt("a dog"))
    x, t = unit_noise(SD1, 1, 1, 64, 64), torch.tensor([500])

    def answer(mask):
        rex = encode(small, compose(small, bank, "a <rex>", masks={} if mask is None else {"rex": mask}))
        return predictor(small, Scene())(x, t, rex.rows, rex.pooled, 1)

    with torch.no_grad():
        base = small.predict(x, t, text.context, text.pooled)
        whole = answer(None)
        assert torch.allclose(answer(torch.zeros(4, 4)), base, atol=2e-6)
        assert torch.allclose(answer(torch.ones(4, 4)), whole, atol=2e-6)
        limited = answer(left)
        assert all((limited - other).abs().max() > 1e-4 for other in (base, whole))


def test_training_sees_what_painting_does(backbone, tmp_path):
    for stream in STREAMS:
        run = Trainer(backbone, dataset(), task_of(RECIPE.update(stream=stream, anchor=0.0)))
        known = concept(backbone, "rex")
        run.learner.begin(replace(known, residuals={n: r for n, r in known.residuals.items() if n in run.learner.names}))
        samples, generator = run.batches.batch(0, 2)
        text, _ = run.learner.read([s.text for s in samples])
        draw = add_noise(torch.stack([s.latent for s in samples]), backbone.schedule, generator)
        guesses = []
        predict = backbone.predict
        backbone.predict = lambda *args, predict=predict, seen=guesses: seen.append(predict(*args)) or seen[-1]
        try:
            with run.computing(draw.x), run.backbone.training_mode(draw.x), ExitStack() as during:
                run.learner.loss(Batch(draw, samples, 0), during)[0].backward()
        finally:
            del backbone.predict
        bank = Bank(tmp_path / stream).add(known)
        for i, shown in enumerate(samples):
            plan = row_plan(backbone, compose(backbone, bank, shown.text))
            pooled = None if text.pooled is None else text.pooled[i : i + 1]
            part = slice(i, i + 1)
            one = replace(text, states=text.states[part], plans=(plan,))
            with torch.no_grad():
                predict = predictor(backbone, Scene(infusion=ResidualConfig(stream)))
                want = predict(draw.x[part], draw.t[part], one.rows, pooled, 1)
            assert torch.allclose(guesses[-1][part], want, atol=2e-5)
        assert all(r.grad is not None and r.grad.abs().max() > 0 for r in run.learner.rows)


class Stopped(Exception):
    pass


RELEASED = {"stream": "released_code", "targets": "decoder", "checkpointing": True}


@pytest.mark.parametrize("how", [{}, {"anchor": 1.0, "accumulate": 2}, RELEASED])
def test_a_stopped_run_goes_on_bit_for_bit(small, tmp_path, how):
    recipe, found = RECIPE.update(**how), []
    for folder, stop in (("whole", 0), ("stopped", 4)):
        bank = Bank(tmp_path / folder)

        def on_step(run, stop=stop):
            if run.step == stop:
                raise Stopped

        task = task_of(recipe)
        if stop:
            with pytest.raises(Stopped):
                learn_into(bank, small, dataset(), task, on_step=on_step)
            assert not bank.names
        bank, made, losses, _ = learn_into(bank, small, dataset(), task)
        found.append((made, losses))
        assert learn_into(bank, small, dataset(), task).losses == [round(loss, 5) for loss in losses], "the same task again learns nothing"
    (one, losses), (other, again) = found
    assert losses == again and all(torch.equal(r, other.residuals[n]) for n, r in one.residuals.items())
    parts = {n.rpartition(".")[2] for n in one.residuals}
    assert parts == ({"to_v", "to_k"} if recipe.method.stream == "released_code" else {"to_v"})
    assert all(r.abs().max() > 0 for r in one.residuals.values())


def test_checkpointing_and_parts_learn_the_same(small):
    learned = []
    for how in ({}, {"checkpointing": True}):
        run = Trainer(small, dataset(), task_of(RECIPE.update(anchor=1.0, **how)))
        with run.attach():
            run.advance()
        learned.append(torch.cat(list(run.learner.concept_parts()["residuals"].values())))
        assert run.preview("a <rex>", steps=1).shape == (3, 64, 64)
    assert torch.allclose(*learned, atol=1e-5)


def test_settings_without_meaning_are_refused():
    for wrong in ({"prior": 1.0}, {"lr_text": 1e-4}, {"stream": "double"}, {"anchor": 1.0, "stream": "single"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RECIPE.update(**wrong)
    with pytest.raises(ValueError, match="anchor"):
        configure("cidm", anchor=1.0)


def test_the_command_line_learns_and_paints(tiny_sd1, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i in range(2):
        Image.new("RGB", (64, 64), (90 * i, 40, 200)).save(tmp_path / "photos" / f"{i}.png")
    common = ["--base", str(tiny_sd1), "--bank", str(tmp_path / "bank"), "--size", "64", "--device", "cpu"]
    learn = ["train", *common, "--images", str(tmp_path / "photos"), "--name", "rex", "--class-word", "dog", "--method", "infusion"]
    assert main([*learn, "--steps", "2", "--set", "accumulate=1", "--set", "anchor=1"]) == 0
    with safe_open(tmp_path / "bank" / "rex.safetensors", "pt") as f:
        assert all(key.startswith("infusion.") for key in f.keys())  # noqa: SIM118
    make = ["generate", *common, "--prompt", "a <rex>", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(make) == 0 and main([*make, "--stream", "single"]) == 0
    assert main(["bank", "list", str(tmp_path / "bank")]) == 0
    assert "by Infusion" in capsys.readouterr().out
