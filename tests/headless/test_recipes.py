"""The options of a recipe do what they say: text encoder factors, prior, attention, flow, precision, memory, continuing."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_training import RECIPE, Stopped, dataset, gradients, learn, task_of

from cidm_ops.bank.bank import Bank
from cidm_ops.causal import attention_layers
from cidm_ops.engines.diffusers import load
from cidm_ops.hub import watch_attention
from cidm_ops.method.attention import attention_loss
from cidm_ops.models.sd import SD1
from cidm_ops.painting.paint import SamplingConfig, paint, unit_noise
from cidm_ops.schedule import Schedule
from cidm_ops.tokens import encode_layerwise, positions_of
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.memory import MemoryPlan
from cidm_ops.training.prior import imagine
from cidm_ops.training.trainer import Trainer

WORDS = ("<rex.1>", "<rex.2>")


@pytest.fixture(scope="module")
def backbone(tiny_sd1):
    return load(tiny_sd1)


def new_run(backbone, data=None, **recipe):
    return Trainer(backbone, data or dataset(), task_of(RECIPE.update(**recipe)))


def test_text_encoders_learn_are_saved_in_kohyas_names_and_change_the_text(backbone, tmp_path):
    bank, concept, _, _ = learn(Bank(tmp_path), backbone, recipe=RECIPE.update(lr_text=1e-2))
    assert concept.text_factors.keys() == attention_layers(backbone.texts).keys()
    with safe_open(bank.file("rex"), "pt") as f:
        assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in f.keys()  # noqa: SIM118
    back = bank.get("rex")
    assert all(torch.equal(f.up, back.text_factors[n].up) and f.up.abs().max() > 0 for n, f in concept.text_factors.items())
    without = tmp_path / "without"
    silent = Bank(without).add(replace(back, text_factors={}))
    pictures = [paint(backbone, b, "a <rex>", unit_noise(SD1, 0, 1, 64, 64), SamplingConfig(2))[0] for b in (bank, silent)]
    assert (pictures[0] - pictures[1]).abs().max() > 1e-4
    ordinary = [paint(backbone, b, "a cat", unit_noise(SD1, 0, 1, 64, 64), SamplingConfig(2))[0] for b in (bank, silent)]
    assert torch.equal(*ordinary)


def test_text_encoder_factors_resume(backbone, tmp_path):
    recipe = RECIPE.update(lr_text=1e-2)
    _, whole, losses, _ = learn(Bank(tmp_path / "whole"), backbone, recipe=recipe)
    with pytest.raises(Stopped):
        learn(Bank(tmp_path / "stopped"), backbone, recipe=recipe, stop=7)
    _, stopped, again, _ = learn(Bank(tmp_path / "stopped"), backbone, recipe=recipe)
    assert losses == again
    assert all(torch.equal(f.up, stopped.text_factors[n].up) for n, f in whole.text_factors.items())


def test_the_prior_comes_from_a_folder_or_from_the_base(backbone, tmp_path):
    painted = []
    recipe = RECIPE.update(prior=1.0, prior_pictures=2)
    _, plain, _, _ = learn(Bank(tmp_path / "plain"), backbone)
    _, own, _, _ = learn(Bank(tmp_path / "own"), backbone, recipe=recipe, on_picture=lambda done, count: painted.append((done, count)))
    assert painted == [(1, 2), (2, 2)]
    base = imagine(backbone, "dog", 2, (64, 64), recipe.seed)
    _, given, _, _ = learn(Bank(tmp_path / "given"), backbone, recipe=recipe, prior=base)
    name = next(iter(plain.factors))
    assert torch.equal(own.factors[name].up, given.factors[name].up) and not torch.equal(own.factors[name].up, plain.factors[name].up)
    other = Dataset([torch.zeros(3, 64, 64)], ["dog"])
    _, another, _, _ = learn(Bank(tmp_path / "given"), backbone, recipe=recipe, prior=other)
    assert not torch.equal(another.factors[name].up, given.factors[name].up), "another prior is another task"


def test_attention_outside_the_mask_costs_and_no_mask_is_no_nan(backbone):
    text = "a <rex.1> <rex.2>"
    run = new_run(backbone)
    with torch.no_grad(), watch_attention(backbone.cross_attention.values()) as seen:
        encoded = encode_layerwise(backbone, [text], run.learner.tables())
        backbone.predict(torch.randn(1, 4, 16, 16), torch.tensor([500]), encoded.context)
    positions = positions_of(backbone, text, WORDS)
    assert positions == [2, 3]
    full, none = torch.ones(1, 16, 16), torch.zeros(1, 16, 16)
    outside_of_all, outside_of_none = (attention_loss(seen, 0, positions[:1], mask) for mask in (full, none))
    assert outside_of_all == 0 and 0 < outside_of_none <= 1
    assert attention_loss(seen, 0, positions, none).isfinite()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_attention_is_learned_from_masks_only(backbone, checkpointing):
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    masked = dataset(masks=[half] * 3)
    with_mask = [gradients(new_run(backbone, masked, attention=weight, checkpointing=checkpointing)) for weight in (0.0, 1.0)]
    without = [gradients(new_run(backbone, attention=weight)) for weight in (0.0, 1.0)]
    assert any(not torch.equal(a, b) for a, b in zip(*with_mask, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*without, strict=True))


def test_attention_gradients_are_the_same_with_checkpointing(backbone):
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    plain, again = (gradients(new_run(backbone, dataset(masks=[half] * 3), attention=1.0, checkpointing=on)) for on in (False, True))
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


def test_a_flow_is_learned_and_painted_as_one(backbone, tmp_path, monkeypatch):
    straight = Schedule.straight(shift=3.0)
    clean, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([0, 999])
    x = straight.add_noise(clean, noise, t)
    torch.testing.assert_close(x[1], noise[1])
    sigma = straight.sigma[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(x - sigma * straight.target(clean, noise, t), clean)
    monkeypatch.setattr(backbone, "schedule", straight)
    bank, _, losses, _ = learn(Bank(tmp_path), backbone, recipe=RECIPE.update(min_snr=5.0))
    assert all(0 < loss < 100 for loss in losses)
    exact = torch.randn(1, 4, 8, 8)
    monkeypatch.setattr(backbone, "predict", lambda x, t, *text: (x - exact) / straight.sigma[t[0]])
    decoded = []
    monkeypatch.setattr(backbone, "decode_latent", lambda latents: decoded.append(latents) or torch.zeros(1, 3, 64, 64))
    paint(backbone, bank, "a <rex>", unit_noise(SD1, 0, 1, 64, 64), SamplingConfig(6))
    torch.testing.assert_close(decoded[0], exact, atol=1e-4, rtol=1e-4)


def test_half_precision_learns_what_full_precision_does(tiny_sd1, backbone):
    full = gradients(new_run(backbone, precision="as_model"))
    for other, scale in ((gradients(new_run(backbone, precision="bf16")), 1.0), (half_run(tiny_sd1), 4096.0)):
        assert all(g.dtype == torch.float32 for g in other)
        together = [torch.cat([g.flatten() for g in side]) for side in (full, other)]
        assert torch.cosine_similarity(*together, dim=0) > 0.98, scale


def half_run(tiny_sd1):
    run = new_run(load(tiny_sd1, dtype=torch.float16), precision="as_model")
    assert run.plan.scale == 4096.0
    return gradients(run)


def test_weights_come_back_after_a_step_in_bf16(backbone):
    before = {n: p.data_ptr() for n, p in backbone.unet.named_parameters()}
    gradients(new_run(backbone, precision="bf16"))
    assert {n: p.data_ptr() for n, p in backbone.unet.named_parameters()} == before


def test_thriftier_ways_take_the_same_step(backbone):
    runs = [new_run(backbone, batch=3, precision="as_model") for _ in range(3)]
    for run in runs[1:]:
        run.plan = run.plan.reduce()
    runs[2].plan = runs[2].plan.reduce()
    assert str(runs[2].plan) == "checkpointing on, 1 at once, precision as_model"
    plain, *others = map(gradients, runs)
    for other in others:
        for a, b in zip(plain, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


SHORT_OF_MEMORY = """
import json, os, resource, sys, torch
from cidm_ops.engines.diffusers import load
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.methods import configure
from cidm_ops.training.method import Task
from cidm_ops.training.trainer import Trainer

torch.set_num_threads(1)
torch.backends.mkldnn.enabled = False  # its code generator may fail for good once memory was short
backbone = load(sys.argv[1])


def step(memory, room, side):
    data = Dataset([torch.rand(3, side, side)] * 4, ["a dog"] * 4)
    config = configure("cidm", steps=2, batch=4, memory=memory, precision="as_model", norm_stop=0.0)
    run = Trainer(backbone, data, Task(name="rex", class_word="dog", config=config))
    latent = torch.randn(4, side // 8, side // 8)
    run.batches.latents = {(i, False): latent for i in range(4)}
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
    try:
        with run.attach():
            run.advance()
        return {"means": str(run.plan), "warnings": run.warnings}
    except MemoryError as error:
        return {"error": str(error)}


for case in sys.argv[2:]:
    memory, room, side = case.split(":")
    if not (child := os.fork()):
        print(json.dumps(step(memory, int(room) * 2**20, int(side))), flush=True)
        os._exit(0)
    assert not os.waitpid(child, 0)[1], case
"""


def short_of_memory(base, *cases):
    """A step each in processes that get so many MB more than they have, and no more; a case is ``MEMORY:MB:SIDE``."""
    command = [sys.executable, "-c", SHORT_OF_MEMORY, base, *cases]
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system, as it does on a GPU
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ | at_once)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-len(cases) :]]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process through the kernel")
def test_when_memory_runs_out_the_step_is_done_in_another_way(tiny_sd1):
    plenty, short, refused, nothing = short_of_memory(str(tiny_sd1), "auto:20000:256", "auto:28:256", "as_set:16:256", "auto:1:512")
    assert plenty == {"means": "checkpointing off, 4 at once, precision as_model", "warnings": []}
    assert short["means"].startswith("checkpointing on") and "memory was short with checkpointing off" in short["warnings"][0]
    assert "try checkpointing on" in refused["error"] and "memory=auto" in refused["error"]
    assert "train at a smaller size" in nothing["error"]


def test_means_run_down_to_none():
    means, steps = MemoryPlan(False, False, 4), []
    while means := means.reduce():
        steps.append(str(means))
    assert steps == [
        "checkpointing on, 4 at once, precision as_model",
        "checkpointing on, 1 at once, precision as_model",
        "checkpointing on, 1 at once, precision bf16",
    ]


def test_a_concept_is_learned_further(backbone, tmp_path):
    bank, first, _, _ = learn(Bank(tmp_path), backbone)
    more = RECIPE.update(steps=5, seed=8)
    bank, second, losses, _ = learn(bank, backbone, recipe=more, existing="continue")
    assert len(losses) == 5 and second.task == first.task
    name = next(iter(first.factors))
    moved, whole = ((second.factors[name].up - first.factors[name].up).norm(), first.factors[name].up.norm())
    assert 0 < moved < whole, "it began where the first ended"
    steps = []
    learn_again = learn(bank, backbone, recipe=more, existing="continue", on_picture=lambda *_: steps.append(1))
    assert learn_again[2] == pytest.approx(losses, abs=1e-5), "the same task again learns nothing"
    assert torch.equal(learn_again[1].factors[name].up, second.factors[name].up)
    with pytest.raises(ValueError, match="continue with the settings it was learned with"):
        learn(bank, backbone, recipe=more.update(rank=2), existing="continue")
    with pytest.raises(ValueError, match="token groups"):
        learn(bank, backbone, recipe=more.update(groups="one"), existing="continue")


def test_a_stopped_continuation_goes_on(backbone, tmp_path):
    more = RECIPE.update(steps=8, seed=8)
    results = []
    for folder, stop in (("whole", 0), ("stopped", 4)):
        bank, _, _, _ = learn(Bank(tmp_path / folder), backbone)
        if stop:
            with pytest.raises(Stopped):
                learn(bank, backbone, recipe=more, existing="continue", stop=stop)
        results.append(learn(bank, backbone, recipe=more, existing="continue")[1:])
    assert results[0][1] == results[1][1]
    assert all(torch.equal(f.up, results[1][0].factors[n].up) for n, f in results[0][0].factors.items())


def test_a_full_disk_loses_nothing(backbone, tmp_path, full_disk):
    bank, _, _, _ = learn(Bank(full_disk / "bank"), backbone, name="first")
    before = bank.file("first").read_bytes()
    with pytest.raises(Stopped):
        learn(bank, backbone, stop=5)
    state = bank.folder / ".training" / "rex.safetensors"
    kept = state.read_bytes()
    filler = full_disk / "filler"
    with open(filler, "wb", buffering=0) as f:
        try:
            while True:
                f.write(b"0" * 4096)
        except OSError:
            pass
    with pytest.raises((OSError, ValueError), match=r"No space left|cannot be written"):
        learn(bank, backbone)
    assert Bank(bank.folder).names == ["first"] and bank.file("first").read_bytes() == before and state.read_bytes() == kept
    assert not [f for f in bank.folder.rglob("*") if "partial" in f.name]
    filler.unlink()
    bank, _, losses, _ = learn(bank, backbone)
    assert bank.names == ["first", "rex"] and len(losses) == RECIPE.steps


@pytest.fixture
def full_disk(tmp_path):
    """A disk of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted as root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_noise_levels_are_drawn_evenly_or_around_the_middle(backbone):
    clean, logs = torch.zeros(4000, 4, 8, 8), backbone.schedule.ratios().log()

    def draw(**recipe):
        return new_run(backbone, **recipe).learner.draw_timesteps(clean, torch.Generator().manual_seed(0))

    even = torch.randint(0, 1000, (4000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(), even), "as they always were where nothing is set"
    inside = even[(even > 200) & (even < 800)]
    moved = draw(density="uniform", shift=2.0)[(even > 200) & (even < 800)]
    torch.testing.assert_close(logs[moved] - logs[inside], torch.full(inside.shape, math.log(2)), atol=0.01, rtol=0)
    quantiles = torch.tensor([0.1587, 0.5, 0.8413])
    drawn = logs[draw(density="sigmoid", shift=2.0)].quantile(quantiles)
    torch.testing.assert_close(drawn, torch.tensor([-1.0, 0.0, 1.0]) + math.log(2), atol=0.05, rtol=0)
    with pytest.raises(ValueError, match="density 'middle': expected one of of the family, uniform, sigmoid"):
        RECIPE.update(density="middle")
    with pytest.raises(ValueError, match=r"shift -1: expected 0 or more"):
        RECIPE.update(shift=-1)
