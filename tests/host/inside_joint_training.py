"""Checks of learning on transformers inside a ComfyUI, as in inside.py, on small random models of the host's own classes."""

import re
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from inside import doodle, equal
from inside_joint import conditioning, painted, same
from inside_transformers import loaded, refused

# isort: split

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import pack.cidm_ops.recompute as computing
import torch
from comfy.cli_args import PerformanceFeature, args
from host_transformers import ARCHITECTURES, CONFIGS, FILMS, NEWEST, POOLED, TEXT, anima_clip, flux_clip, model_of
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.bank.export import export_concept
from pack.cidm_ops.models.registry import family_of
from pack.cidm_ops.recompute import recompute
from pack.cidm_ops.training.dataset import Dataset
from pack.cidm_ops.training.method import Batch, Task
from pack.cidm_ops.training.methods import configure
from pack.cidm_ops.training.objective import add_noise, nearest_timesteps
from pack.cidm_ops.training.task import learn_into
from pack.cidm_ops.training.trainer import Trainer
from pack.nodes import joint_learning, patches
from pack.nodes.joint_learning import ComfyTransformerBackbone
from safetensors.torch import load_file
from subjects import call

PICTURES = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
LONG, SHORT = "a rex dog on the grass", "a rex dog"


class Autoencoder:
    """Stands where that of a kind of model does: pictures in patches of 8 pixels to 16 numbers each, or of 16 to 128, and back to grey
    pictures. One of films takes the pictures of a call for frames, as the host does, and has half of them.
    """

    def __init__(self, kind: str = ""):
        self.films, (self.side, self.channels) = kind in FILMS, (16, 128) if kind == "Flux2" else (8, 16)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.interpolate(pixels.movedim(-1, 1).float(), scale_factor=1 / self.side, mode="area")
        latents = torch.cat([small * (1 + i % 6 / 7) for i in range(43)], 1)[:, : self.channels]
        return latents.movedim(0, 1)[None, :, ::2] if self.films else latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        if self.films:
            assert latents.ndim == 5
            return Autoencoder().decode(latents.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(latents), -1))
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=self.side).sigmoid().movedim(1, -1)


@cache
def clip_of(kind: str) -> Any:
    """A text encoder of the width that the models read: that of Flux.1, small, whose states the others read too, but for Anima."""
    return anima_clip() if kind == "Anima" else flux_clip()


def backbone_of(kind: str, model: Any = None) -> ComfyTransformerBackbone:
    return ComfyTransformerBackbone(model or model_of(kind), clip_of(kind), Autoencoder(kind))


def data() -> Dataset:
    return Dataset([picture.movedim(-1, 0) for picture in PICTURES], ["a dog on the grass", "a dog"])


def task(**settings: Any) -> Task:
    more = {name: settings.pop(name) for name in ("assistant",) if name in settings}
    chosen = {"steps": 3, "rank": 2, "lr": 0.02, "seed": 3, **settings}
    return Task(name="rex", class_word="dog", config=configure("lora", **chosen), **more)


def run_of(kind: str, backbone: Any = None, **settings: Any) -> tuple[Trainer, Batch]:
    """A run whose factors are away from where they begin, and a batch of it."""
    trainer = Trainer(backbone or backbone_of(kind), data(), task(batch=2, **settings))
    draw = torch.Generator().manual_seed(5)
    for parameter in trainer.learner.parameters():
        parameter.data.normal_(0, 0.1, generator=draw)
    samples, generator = trainer.batches.batch(0, 2)
    samples = [replace(sample, text=text) for sample, text in zip(samples, (LONG, SHORT), strict=True)]
    t = nearest_timesteps(torch.tensor([0.7, 0.4]), trainer.backbone.schedule)
    clean = torch.stack([s.latent for s in samples])
    return trainer, Batch(add_noise(clean, trainer.backbone.schedule, generator, t=t), samples, 0)


def gradients(trainer: Trainer, batch: Batch, again: bool) -> dict[str, torch.Tensor]:
    trainer.optimizer.zero_grad(set_to_none=True)
    with torch.inference_mode(False), torch.enable_grad(), trainer.attach(), ExitStack() as during:
        during.enter_context(trainer.backbone.training_mode(batch.noised.x))
        if again:
            during.enter_context(recompute(trainer.backbone.unet, trainer.blocks))
        trainer.learner.loss(batch, during)[0].backward()
    return {n: p.grad.clone() for n, p in trainer.learner.named_parameters()}


def differences(trainer: Trainer, batch: Batch, found: dict[str, torch.Tensor]) -> tuple[float, float]:
    """The slope of the loss in a random direction that leads uphill, as it is measured close by at two distances, which takes out how it
    bends (Richardson's extrapolation), and as gradients say it.
    """
    draw, named = torch.Generator().manual_seed(7), dict(trainer.learner.named_parameters())
    ways = {n: torch.rand(p.shape, generator=draw) * found[n].sign() for n, p in named.items()}
    told = float(sum((found[n].double() * ways[n]).sum() for n in found))
    values: list[float] = []
    with torch.no_grad(), trainer.attach(), ExitStack() as during:
        during.enter_context(trainer.backbone.training_mode(batch.noised.x))
        size = 3e-4 * float(trainer.learner.loss(batch, during)[0]) / told
        for step in (1, -1, 2, -2):
            for n, p in named.items():
                p += step * size * ways[n]
            values.append(float(trainer.learner.loss(batch, during)[0].double()))
            for n, p in named.items():
                p -= step * size * ways[n]
    near, far = (values[0] - values[1]) / (2 * size), (values[2] - values[3]) / (4 * size)
    return (4 * near - far) / 3, told


def the_gradient_is_that_of_finite_differences():
    for kind in CONFIGS:
        with torch.inference_mode(False):
            trainer, batch = run_of(kind)
            kept, again = gradients(trainer, batch, False), gradients(trainer, batch, True)
            assert all(gradient.any() for gradient in kept.values()), kind
            for n in kept:
                assert torch.equal(kept[n], again[n]), f"{kind}: {n} differs when blocks are computed again"
            measured, told = differences(trainer, batch, kept)
            assert abs(measured - told) <= 2e-3 * abs(told), f"{kind}: {measured} measured, {told} told"


def the_gradient_without_copies_is_refused_or_wrong():
    """The host's blocks of Flux write over what they were given, with either way of keeping it; where blocks are computed again, only some
    versions of PyTorch say so.
    """
    with torch.inference_mode(False):
        trainer, batch = run_of("Flux")
        right = gradients(trainer, batch, False)
        own, copied = joint_learning.keep_normalised, computing.on_copies
        joint_learning.keep_normalised = lambda model: ExitStack()
        computing.on_copies = lambda forward: forward
        try:
            try:
                gradients(trainer, batch, False)
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error), error
            else:
                raise AssertionError("plain autograd took it")
            wrong = gradients(trainer, batch, True)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error), error
            return
        finally:
            joint_learning.keep_normalised, computing.on_copies = own, copied
        apart = sum(float((wrong[n] - right[n]).norm()) for n in right) / sum(float(g.norm()) for g in right.values())
        assert apart > 1e-3, "without copies nothing is said, and the gradient is another"


def the_copies_change_no_number():
    for kind in CONFIGS:
        with torch.inference_mode(False), torch.no_grad():
            trainer, batch = run_of(kind)
            backbone, noised = trainer.backbone, batch.noised
            text = trainer.learner.read(LONG).expand(2)
            plain = backbone.predict(noised.x, noised.t, text.states[:, 0], text.pooled)
        with torch.inference_mode(False), torch.enable_grad(), backbone.training_mode(noised.x):
            copied = backbone.predict(noised.x, noised.t, text.states[:, 0], text.pooled, backbone.family.objective.painted)
        same(copied.detach(), plain, kind)
        assert not getattr(comfy.model_management, "in_training", False), "the host's flag is put back"
        assert not any(m._forward_pre_hooks for m in backbone.unet.modules())


def the_model_is_asked_as_the_host_asks_it():
    """The flow at a noise level is what the host's own apply_model makes of it."""
    for kind in CONFIGS:
        with torch.inference_mode(False), torch.no_grad():
            trainer, batch = run_of(kind)
            backbone, x = trainer.backbone, batch.noised.x
            text = trainer.learner.read(LONG).expand(2)
            found = backbone.predict(x, batch.noised.t, text.states[:, 0], text.pooled)
            sigma = backbone.schedule.sigma[batch.noised.t]
            base = backbone.model.model
            more = {"guidance": 3.5} if kind == "Flux" else {}
            more |= {"attention_mask": torch.ones(1, text.states.shape[2], dtype=torch.long)} if kind in ("Lumina2", "ZImage") else {}
            conditions = base.extra_conds(cross_attn=text.states[:, 0], pooled_output=text.pooled, noise=x, device=x.device, **more)
            given = {n: c.process_cond(batch_size=2, device=x.device, area=None).cond for n, c in conditions.items()}
            seen = x[:, :, None] if kind in FILMS else x
            denoised = base.apply_model(seen, sigma, **given).view_as(x)
            same(found, (x - denoised) / sigma[:, None, None, None], kind)
            clean, noise = torch.randn_like(x), torch.randn_like(x)
            t = batch.noised.t
            equal(backbone.schedule.add_noise(clean, noise, t), noised_by_host(base, sigma, noise, clean))


def noised_by_host(base: Any, sigma: torch.Tensor, noise: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return base.model_sampling.noise_scaling(sigma[:, None, None, None], noise, clean)


def the_node_learns_and_the_bank_paints_it():
    for kind in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            bank = Bank(Path(folder) / "bank")
            settings = call("CIDMTrainingSettings", preview_every=2)
            vae = Autoencoder(kind)
            given = {"model": model_of(kind), "clip": clip_of(kind), "vae": vae, "bank": bank, "images": PICTURES}
            learned, lora, loss, steps = call(
                "CIDMTrainConcept", **given, name="rex", class_word="dog", steps=3, rank=2, learning_rate=0.02, settings=settings,
                captions="a dog on the grass\na dog",
            )  # fmt: skip
            concept = learned.get("rex")
            assert steps == 3 and len(loss["loss"]) == 3 and concept.architecture == ARCHITECTURES[kind]
            assert concept.triggers == ("rex dog",) and concept.training["method"] == "lora"
            family = family_of(concept.architecture)
            assert {*map(family.block_of, concept.factors)} == {*family.meeting(map(family.block_of, concept.factors))}
            merged = patches.merge(model_of(kind), concept.factors)
            alike = loaded(kind, lora)
            (file,) = export_concept(concept, Path(folder) / "out")
            said = conditioning(kind, torch.randn(1, 9, TEXT, generator=torch.Generator().manual_seed(1)))
            wanted = painted(kind, merged, said)
            for other in (alike, loaded(kind, load_file(file))):
                same(painted(kind, other, said), wanted, f"{kind}: what the host's loader makes of it")
            found = call("CIDMAggregate", model=model_of(kind), clip=doodle()[1], bank=learned, text="a <rex>")[0]
            same(painted(kind, found, said), wanted, kind)
            assert float((wanted - painted(kind, model_of(kind), said)).abs().max()) > 1e-4, "it changes the picture"


def the_run_that_was_stopped_goes_on_bit_for_bit():
    class Stopped(Exception):
        pass

    def stop(trainer: Trainer) -> None:
        if trainer.step == 2:
            raise Stopped

    kind = "Lumina2"
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        whole = learn_into(Bank(Path(folder) / "whole"), backbone_of(kind), data(), task())
        bank = Bank(Path(folder) / "stopped")
        try:
            learn_into(bank, backbone_of(kind), data(), task(), on_step=stop)
        except Stopped:
            pass
        else:
            raise AssertionError("it did not stop")
        went_on = learn_into(bank, backbone_of(kind), data(), task())
        assert went_on.losses == whole.losses
        for layer, f in whole.concept.factors.items():
            equal(went_on.concept.factors[layer].up, f.up)


def the_base_in_fp8_learns():
    """The weights of the file are in fp8, what is computed in fp32: the gradient is that of the same numbers in fp32."""
    state = {key: weight.to(torch.float8_e4m3fn) for key, weight in model_of("Flux").model.diffusion_model.state_dict().items()}
    found = []
    for dtypes in ((torch.float8_e4m3fn, torch.float32), (torch.float32, None)):
        config = comfy.supported_models.Flux(dict(CONFIGS["Flux"]))
        config.set_inference_dtype(*dtypes)
        base = config.get_model({}, "", device=torch.device("cpu"))
        base.diffusion_model.load_state_dict({key: weight.to(dtypes[0]) for key, weight in state.items()})
        base.eval().requires_grad_(False)
        model = comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))
        with torch.inference_mode(False):
            found.append(gradients(*run_of("Flux", backbone_of("Flux", model)), True))
    for n, wanted in found[1].items():
        same(found[0][n], wanted, n)


def the_fast_matrices_in_fp8_are_refused():
    before = args.fast
    args.fast = {PerformanceFeature.Fp8MatrixMultiplication}
    try:
        with torch.inference_mode(False), tempfile.TemporaryDirectory() as folder:
            learn_into(Bank(Path(folder)), backbone_of("Flux"), data(), task())
    except ValueError as error:
        assert "--fast fp8_matrix_mult" in str(error), error
    else:
        raise AssertionError("it learned")
    finally:
        args.fast = before


def the_rest_of_training_is_refused_by_name():
    with tempfile.TemporaryDirectory() as folder:
        given = {"model": model_of("Flux"), "clip": flux_clip(), "vae": Autoencoder(), "bank": Bank(Path(folder)), "images": PICTURES[:1]}
        refused("without masks", "CIDMTrainTogether", **given, names="rex: dog\ntom: cat")
        refused("Flux.1, which learns concepts by Train Concept", "CIDMTrainInfusion", **given, name="rex", class_word="dog")
        bare = {**given, "vae": None}
        refused("there is no VAE", "CIDMTrainConcept", **bare, name="rex", class_word="dog")


def the_concepts_of_one_picture_are_cut_out_and_learned_each_alone():
    masks = torch.zeros(2, 64, 64)
    masks[0, :, :32], masks[1, :, 32:] = 1, 1
    with tempfile.TemporaryDirectory() as folder:
        one = Dataset([PICTURES[0].movedim(-1, 0)], [""], size=64, fit="buckets")
        given = {"model": model_of("Flux"), "clip": flux_clip(), "vae": Autoencoder(), "bank": Bank(Path(folder)), "images": one}
        quiet = call("CIDMTrainingSettings", preview_every=0)
        bank = call("CIDMTrainTogether", **given, names="rex: dog\ntom: cat", masks=masks, steps=1, rank=2, settings=quiet)[0]
        assert bank.names == ["rex", "tom"]
        assert [bank.get(name).triggers for name in bank.names] == [("rex dog",), ("tom cat",)]


def the_layers_that_learn_are_the_same_in_both_engines():
    for kind in CONFIGS:
        names = run_of(kind)[0].learner.names
        assert not [n for n in names if re.search("refiner|norm|adaLN|embed", n)]
        queries = [n for n in names if re.search(r"(to_|add_|\.)[qkv](_proj)?$", n)]
        counts = {"Flux": 18, "Chroma": 18, "QwenImage": 11, "SD3": 14, "Flux2": 12, "Anima": 12}
        assert len(queries) == counts.get(kind, 6), (kind, queries)
    assert ("ZImage" in CONFIGS) == NEWEST and POOLED
