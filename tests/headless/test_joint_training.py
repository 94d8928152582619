"""Learning on tiny transformers in diffusers' layout, of every family that is painted headless."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import PIPELINES
from tiny_transformers import MODELS

from cidm_ops.__main__ import main
from cidm_ops.adapters import joint_linears
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.exchange import import_file
from cidm_ops.bank.export import export_concept
from cidm_ops.engines.diffusers import load, load_any
from cidm_ops.lowrank import LowRank
from cidm_ops.painting.compose import AggregationConfig
from cidm_ops.painting.paint import SamplingConfig, paint, unit_noise
from cidm_ops.recompute import recompute
from cidm_ops.schedule import Schedule
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.method import Batch, Task
from cidm_ops.training.methods import METHODS, configure
from cidm_ops.training.objective import add_noise, draw_levels, nearest_timesteps, shift_of_size
from cidm_ops.training.task import learn_into
from cidm_ops.training.trainer import Trainer

LONG, SHORT = "a rex dog on the grass", "a rex dog"


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(name, request) -> Any:
    return load_any(request.getfixturevalue(f"tiny_{name}"))


def pictures(count: int = 2, side: int = 64) -> Dataset:
    draw = torch.Generator().manual_seed(0)
    captions = ["a dog on the grass", "a dog"][:count]
    return Dataset([torch.rand(3, side, side, generator=draw) for _ in range(count)], captions)


def task(**settings: Any) -> Task:
    more = {name: settings.pop(name) for name in ("assistant", "existing") if name in settings}
    chosen = {"steps": 3, "rank": 2, "lr": 0.02, "seed": 3, **settings}
    return Task(name="rex", class_word="dog", config=configure("lora", **chosen), **more)


def randomised(trainer: Trainer, size: float = 0.3) -> Any:
    """The learner of a run, its factors away from where they begin."""
    draw = torch.Generator().manual_seed(5)
    for parameter in trainer.learner.parameters():
        parameter.data.normal_(0, size, generator=draw)
    return trainer.learner


def batch_of(trainer: Trainer, texts: tuple[str, ...]) -> Batch:
    samples, generator = trainer.batches.batch(0, len(texts))
    samples = [replace(sample, text=text) for sample, text in zip(samples, texts, strict=True)]
    return Batch(add_noise(torch.stack([s.latent for s in samples]), trainer.backbone.schedule, generator), samples, 0)


def loss_of(trainer: Trainer, batch: Batch) -> torch.Tensor:
    with ExitStack() as during:
        return trainer.learner.loss(batch, during)[0]


@contextmanager
def learning(trainer: Trainer, batch: Batch, again: bool) -> Iterator[None]:
    with trainer.attach(), trainer.backbone.training_mode(batch.noised.x), ExitStack() as open_:
        if again:
            open_.enter_context(recompute(trainer.backbone.unet, trainer.blocks))
        yield


def gradients(trainer: Trainer, batch: Batch, again: bool) -> dict[str, torch.Tensor]:
    trainer.optimizer.zero_grad(set_to_none=True)
    with learning(trainer, batch, again):
        loss_of(trainer, batch).backward()
    return {n: p.grad.clone() for n, p in trainer.learner.named_parameters()}


def test_the_gradient_is_that_of_finite_differences_and_the_same_when_blocks_are_computed_again(backbone):
    trainer = Trainer(backbone, pictures(), task(batch=2))
    learner, batch = randomised(trainer), batch_of(trainer, (LONG, SHORT))
    kept, again = gradients(trainer, batch, False), gradients(trainer, batch, True)
    assert len(kept) == 2 * len(learner.names) and all(torch.equal(kept[n], again[n]) for n in kept)
    assert all(gradient.any() for gradient in kept.values()), "every layer has a part in it"
    draw = torch.Generator().manual_seed(7)
    named = dict(learner.named_parameters())
    ways = {n: torch.rand(p.shape, generator=draw) * kept[n].sign() for n, p in named.items()}  # uphill
    told = float(sum((kept[n].double() * ways[n]).sum() for n in kept))
    with torch.no_grad(), learning(trainer, batch, False):
        size, values = 3e-4 * float(loss_of(trainer, batch)) / told, []
        for sign in (1, -1):
            for n, p in named.items():
                p += sign * size * ways[n]
            values.append(float(loss_of(trainer, batch).double()))
            for n, p in named.items():
                p -= sign * size * ways[n]
    measured = (values[0] - values[1]) / (2 * size)
    assert abs(measured - told) <= 2e-3 * abs(told), (measured, told)


def test_texts_of_different_length_are_learned_as_each_alone(backbone):
    trainer = Trainer(backbone, pictures(), task(batch=2))
    learner, both = randomised(trainer), batch_of(trainer, (LONG, SHORT))
    with torch.no_grad(), trainer.attach():
        found = learner.answer(both.noised.x, both.noised.t, both.texts)
        for row, text in enumerate(both.texts):
            alone = learner.answer(both.noised.x[row : row + 1], both.noised.t[row : row + 1], [text])
            torch.testing.assert_close(found[row : row + 1], alone, atol=1e-5, rtol=1e-4)


def test_all_linear_layers_of_the_joint_blocks_learn_and_nothing_else(name, backbone):
    learned = Trainer(backbone, pictures(), task()).learner.names
    blocks = backbone.family.meeting(backbone.blocks)
    within = {module for block in blocks for module in backbone.blocks[block].modules()}
    ours = {at.module: layer for layer, at in backbone.layers.items()}
    linears = {ours.get(n, n) for n, module in backbone.modules.items() if module in within}
    aside = r"\.norm1(_context)?\.linear$|\.norm\.linear$|(?i:adaln)_modulation|_mod\.1$"
    if name == "sd3":  # nothing reads the text behind its last block
        aside += r"|blocks\.1\.attn\.add_q_proj"
    if name == "qwenimage":
        aside += r"|blocks\.1\.(attn\.(add_q_proj|to_add_out)|txt_mlp)"
    assert {*learned} == {n for n in linears if not re.search(aside, n)}
    assert not [n for n in learned if "refiner" in n] and len(learned) >= 14
    attention = joint_linears(backbone.family, backbone.layers, "attention")
    assert 0 < len(attention) < len(learned) and all(re.search(r"attn|attention", n) for n in attention)
    with pytest.raises(ValueError, match="'nothing': no layer of a block has that in its name"):
        joint_linears(backbone.family, backbone.layers, "nothing")
    with pytest.raises(ValueError, match="expected one of blocks, attention or a regular expression"):
        joint_linears(backbone.family, backbone.layers, "(")


def test_what_was_learned_is_called_by_its_name_and_other_programs_load_it(name, backbone, tmp_path):
    learned = learn_into(Bank(tmp_path / "bank"), backbone, pictures(), task())
    concept = learned.concept
    assert concept.triggers == ("rex dog",) and not concept.words and concept.fingerprint == backbone.fingerprint
    assert learned.bank.read("a <rex:0.5> in the snow").text == "a rex dog in the snow"
    (file,) = export_concept(concept, tmp_path / "out")
    (again,), _ = import_file(file, architecture=concept.architecture)
    assert {*again.factors} == {*concept.factors}
    for layer, f in concept.factors.items():
        torch.testing.assert_close(again.factors[layer].delta(), f.delta(), atol=1e-6, rtol=1e-5)
    if name in ("lumina2", "anima"):
        return  # exported as ComfyUI has it
    model = type(backbone.unet).from_pretrained(backbone.folder / "transformer")
    state = PIPELINES[name].lora_state_dict(str(learned.bank.folder), weight_name=learned.bank.file("rex").name)
    model.load_lora_adapter(state[0] if isinstance(state, tuple) else state, prefix="transformer")
    changed = {
        n: layer.get_delta_weight(layer.active_adapters[0]) for n, layer in model.named_modules() if hasattr(layer, "get_delta_weight")
    }
    assert {*changed} == {*concept.factors}
    for layer, delta in changed.items():
        torch.testing.assert_close(delta, concept.factors[layer].delta(), atol=1e-6, rtol=1e-5)


def test_the_text_encoders_are_let_go_before_the_first_step_and_come_back_for_previews_alone(backbone, tmp_path):
    there = []

    def watch(trainer):
        there.append(sorted(trainer.backbone.encoders_loaded))
        if trainer.step == 2:
            assert trainer.preview("a <rex> in the snow", steps=1).shape == (3, 64, 64)

    learn_into(Bank(tmp_path), backbone, pictures(), task(), on_step=watch)
    assert there == [[], [], []]


def test_pictures_of_the_plain_class_are_painted_by_the_base_and_learned_along(backbone, tmp_path):
    painted = []
    own = task(prior=1.0, prior_pictures=2, steps=1)
    learned = learn_into(Bank(tmp_path), backbone, pictures(), own, on_picture=lambda done, count: painted.append((done, count)))
    assert painted == [(1, 2), (2, 2)] and np.isfinite(learned.losses[0])
    assert not backbone.encoders_loaded, "the texts of these pictures are read beforehand too"


def test_captions_whose_parts_change_places_are_read_as_they_come(backbone, tmp_path):
    data = pictures()
    data.captions = ["a dog, grass, sun", "a dog, snow"]
    learned = learn_into(Bank(tmp_path), backbone, data, task(shuffle=True))
    assert all(map(np.isfinite, learned.losses))


def test_noise_levels_are_drawn_as_the_family_says(name, backbone):
    learner = Trainer(backbone, pictures(), task()).learner
    clean, generator = torch.zeros(4000, 16, 32, 32), torch.Generator().manual_seed(0)
    sigma = backbone.schedule.sigma[learner.draw_timesteps(clean, generator)]
    fixed = {"chroma": 1.0, "lumina2": 1.0, "zimage": 2.0, "qwenimage": 2.2, "sd3": 3.0, "flux2": 7.5, "anima": 1.0, "krea2": 2.5}
    shift = {"flux1": shift_of_size(256), **fixed}[name]
    assert abs(float(sigma.median()) - shift / (1 + shift)) < 0.02, "half of a logit-normal's draws are above 1/2 before the shift"
    own = Trainer(backbone, pictures(), task(density="uniform", shift=1.0)).learner
    even = backbone.schedule.sigma[own.draw_timesteps(clean, generator)]
    counts = torch.histc(even, 10, 0, 1)
    assert counts.min() > 320 and counts.max() < 480
    fixed = Trainer(backbone, pictures(), task(density="uniform", shift=3.0)).learner
    moved = backbone.schedule.sigma[fixed.draw_timesteps(clean, generator)]
    assert abs(float(moved.median()) - 0.75) < 0.02


def test_the_shift_of_a_size_is_that_of_flux():
    assert shift_of_size(256) == pytest.approx(np.exp(0.5)) and shift_of_size(4096) == pytest.approx(np.exp(1.15))
    levels = draw_levels(20000, "sigmoid", 1.0, torch.Generator().manual_seed(0))
    quantiles = torch.tensor([0.1587, 0.5, 0.8413])
    torch.testing.assert_close(levels.quantile(quantiles), torch.tensor([-1.0, 0.0, 1.0]).sigmoid(), atol=0.01, rtol=0)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_the_target_is_noise_less_the_picture_at_every_level(level):
    schedule = Schedule.straight(3.0)
    t = nearest_timesteps(torch.tensor([level]), schedule)
    clean = torch.randn(1, 16, 4, 4)
    noised = add_noise(clean, schedule, torch.Generator().manual_seed(0), t=t)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    sigma = float(schedule.sigma[t])
    assert abs(sigma - level) <= 3e-3
    torch.testing.assert_close(noised.x, (1 - sigma) * clean + sigma * noise)
    torch.testing.assert_close(noised.target, noise - clean)


def test_layers_are_kept_apart_each_on_its_own(backbone, tmp_path):
    """Queries, keys and values, which one host has in one module, each have a subspace."""
    bank = learn_into(Bank(tmp_path), backbone, pictures(), task()).bank
    other = replace(task(steps=8, consolidation=50.0, lr=0.01), name="tom")
    plain = replace(task(steps=8, mode="off", lr=0.01), name="tom")
    apart, free = (learn_into(bank, backbone, pictures(), each).concept for each in (other, plain))
    rex = bank.get("rex")

    def shared(concept: Concept, layer: str) -> float:
        q = torch.linalg.qr(rex.factors[layer].up).Q
        up = concept.factors[layer].up
        return float((q.T @ up).square().sum() / up.square().sum())

    layers = [n for n in rex.factors if re.search(r"to_[qkv]$|[qkv]_proj$", n)]
    assert len(layers) >= 6
    assert sum(shared(apart, n) for n in layers) < 0.7 * sum(shared(free, n) for n in layers)


def assistant_of(backbone: Any, architecture: str = "") -> Concept:
    draw = torch.Generator().manual_seed(9)
    factors = {
        n: LowRank(0.3 * torch.randn(at.rows, 2, generator=draw), torch.randn(2, at.columns, generator=draw))
        for n, at in joint_linears(backbone.family, backbone.layers).items()
    }
    return Concept(name="helper", class_word="", architecture=architecture or backbone.architecture, factors=factors)


def test_an_assistant_acts_while_learning_and_not_while_painting(backbone, tmp_path):
    helper = assistant_of(backbone)
    alone, helped = Trainer(backbone, pictures(), task()), Trainer(backbone, pictures(), task(assistant=helper))
    batch = batch_of(alone, (LONG, SHORT))
    with torch.no_grad(), helped.attach():
        found = helped.learner.answer(batch.noised.x, batch.noised.t, batch.texts)
        shown = helped.preview("a <rex>", steps=2)
    with torch.no_grad(), alone.attach():
        bare = alone.learner.answer(batch.noised.x, batch.noised.t, batch.texts)
        assert torch.equal(alone.preview("a <rex>", steps=2, guidance=1.0), shown)
    assert (found - bare).abs().max() > 1e-2 * bare.abs().max()
    learned = learn_into(Bank(tmp_path), backbone, pictures(), task(assistant=helper))
    assert learned.concept.training["assistant"] == "helper"
    assert all(f.rank == 2 for f in learned.concept.factors.values()), "it is no part of what was learned"
    again = learn_into(learned.bank, backbone, pictures(), task())
    assert again.losses != learned.losses, "with and without it are two tasks"
    with pytest.raises(ValueError, match="the assistant 'helper' is for flux1-9"):
        Trainer(backbone, pictures(), task(assistant=assistant_of(backbone, "flux1-9+9x24")))


def test_a_base_in_fp8_learns_what_the_same_numbers_do(backbone):
    small: Any = load_any(backbone.folder, dtype=torch.float8_e4m3fn)
    whole: Any = load_any(backbone.folder)
    for at in whole.layers.values():
        whole.modules[at.module].weight.data = small.modules[at.module].weight.float()
    kept = {small.modules[at.module].weight.dtype for layer, at in small.layers.items() if small.family.block_of(layer)}
    assert kept == {torch.float8_e4m3fn}
    runs = [Trainer(each, pictures(), task()) for each in (small, whole)]
    found, wanted = (gradients(run, batch_of(run, (LONG, SHORT)), True) for run in runs if randomised(run))
    for n in wanted:
        torch.testing.assert_close(found[n], wanted[n], atol=1e-6, rtol=1e-4)


def test_a_run_learns_its_picture(backbone, tmp_path):
    """At two noise levels, over 40 steps, the loss of what is learned falls below that of the base."""
    data = pictures(1)
    run = Trainer(backbone, data, task(steps=40, rank=8, lr=0.02, dropout=0.0))

    def error_now() -> float:
        with torch.no_grad():
            samples, generator = run.batches.batch(1000, 1)
            t = torch.tensor([300, 800])
            clean = torch.stack([samples[0].latent] * 2)
            noised = add_noise(clean, backbone.schedule, torch.Generator().manual_seed(1), t=t)
            found = run.learner.answer(noised.x, noised.t, [samples[0].text] * 2)
            return float((found - noised.target).square().mean())

    with run.attach():
        before = error_now()
        while not run.done:
            run.advance()
        assert error_now() < 0.95 * before


def test_other_methods_are_refused_here_and_this_one_elsewhere(backbone, tmp_path):
    for method in METHODS:
        own = Task(name="rex", class_word="dog", config=configure(method))
        if method != "lora":
            with pytest.raises(ValueError, match=f"all layers of {backbone.family.title} read one: take method 'lora'"):
                learn_into(Bank(tmp_path), backbone, pictures(), own)
    with pytest.raises(ValueError, match="this base is Doodle: take method 'cidm'"):
        learn_into(Bank(tmp_path), load("doodle"), pictures(), task())
    with pytest.raises(ValueError, match="rank 999: .* wide, expected at most that"):
        Trainer(backbone, pictures(), task(rank=999))
    with pytest.raises(ValueError, match="learns one concept at a time"):
        Trainer(backbone, pictures(), replace(task(), others={"tom": "cat"}))


def test_what_is_not_painted_is_refused_by_name(backbone, tmp_path):
    learned = learn_into(Bank(tmp_path), backbone, pictures(), task())
    noise = unit_noise(backbone.family, 1, 1, 64, 64)
    with pytest.raises(ValueError, match="sparing the negative text does not work on .* without regions"):
        paint(backbone, learned.bank, "a <rex>", noise, SamplingConfig(1, aggregation=AggregationConfig(negative=False)))


def test_the_command_line_learns_and_paints(name, backbone, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    common = ["--base", str(backbone.folder), "--bank", str(tmp_path / "bank"), "--size", "64", "--device", "cpu"]
    learn = ["train", *common, "--images", str(tmp_path / "photos"), "--name", "rex", "--class-word", "dog"]
    assert main([*learn, "--steps", "2", "--rank", "2", "--set", "lr=0.5"]) == 0
    make = ["generate", *common, "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*make, "--prompt", "a <rex>", "--prompt", "a rex dog:1", "--prompt", "a dog"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("rex.safetensors")
    concept, base = (np.asarray(Image.open(file)) for file in (lines[-3], lines[-1]))
    assert (concept != base).any()
    assert main([*learn, "--method", "cidm"]) == 2
    assert "take method 'lora'" in capsys.readouterr().err
    helper = tmp_path / "bank" / "rex.safetensors"
    assert main([*learn[:-4], "--name", "tom", "--class-word", "cat", "--steps", "1", "--rank", "2", "--assistant", str(helper)]) == 0
    assert Bank(tmp_path / "bank").headers["tom"]["training"]["assistant"] == "rex"
