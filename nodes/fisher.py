"""Latent Fisher divergence of two of the host's models: both asked for the clean latent, through everything that is on them."""

from collections.abc import Sequence
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.measure.divergence import Levels, divergence
from ..cidm_ops.measure.fisher import join, read_groups
from ..cidm_ops.measure.sections import divergence_section
from . import say
from .bank import ConceptBank
from .paint import CIDMEncodePrompt
from .results import BEFORE, CATEGORY, finish, outputs
from .schema import schema

PROMPTS = "unrelated: a red boat on the beach\nsame kind: a cat in the snow\nwith the concept: a <dog> next to a red boat"


class Probe(comfy.samplers.Sampler):
    """A sampler that moves nothing: at each level it noises the latents anew and keeps what the model takes for clean."""

    def __init__(self, levels: Levels):
        self.levels = levels
        self.found: list[Any] = []

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        sampling = model_wrap.inner_model.model_sampling
        for sigma in sigmas:
            x = sampling.noise_scaling(sigma, noise, latent_image)
            self.found.append(model_wrap(x, sigma.expand(len(x)), **extra_args).float().cpu())
        return latent_image


class Conditional(comfy.samplers.CFGGuider):
    """One text, no guidance."""

    def set_text(self, positive: Any) -> "Conditional":
        self.inner_set_conds({"positive": positive})
        self.set_cfg(1.0)
        return self


def levels_of(model: ModelPatcher, count: int) -> tuple[Levels, Tensor]:
    """Levels as noise over signal, and the host's own sigmas for them ``[T]``."""
    sampling: Any = model.get_model_object("model_sampling")
    trained = sampling.sigmas.float().cpu()
    if not isinstance(sampling, comfy.model_sampling.CONST):
        levels = Levels.of(trained, count)
        return levels, levels.sigmas
    levels = Levels.of(trained / (1 - trained), count)
    return levels, levels.sigmas / (1 + levels.sigmas)


def clean(model: ModelPatcher, positive: Any, latents: Tensor, noise: Tensor, levels: Levels, sigmas: Tensor) -> Tensor:
    """Return what a model takes for clean at every level, ``[T, K, ...]``."""
    probe = Probe(levels)
    Conditional(model).set_text(positive).sample(noise, latents, probe, sigmas, disable_pbar=True, seed=0)
    return torch.stack(probe.found)


def encode(clip, bank: Bank | None, text: str) -> Any:
    if bank is not None:
        return CIDMEncodePrompt.execute(clip, bank, text).args[0]
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


class CIDMFisherDivergence(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMFisherDivergence",
            display_name="Latent Fisher Divergence (our estimator)",
            aliases="drift, overfitting, compare models, difference of models, evaluate",
            category=CATEGORY,
            description="What customising did to prompts that it should leave alone: the squared difference of both models' scores on "
            "noised latents that the original paints, by group of prompts. 0 is untouched.",
            inputs=[
                io.Model.Input("model", tooltip="The original model. It paints the latents that both look at."),
                io.Model.Input("customised", tooltip="The customised model, with everything that is on it."),
                io.Clip.Input("clip", tooltip="The text encoder of the original."),
                io.String.Input(
                    "prompts",
                    default=PROMPTS,
                    multiline=True,
                    tooltip="One a line, as 'group: prompt'. With a bank, <name> is the concept for the customised model and its class "
                    "word for the original.",
                ),
                io.Latent.Input("latent", tooltip="An empty latent: its size, and how many latents for each prompt. 4 or more."),
                io.Int.Input("levels", default=12, min=2, max=100, tooltip="Noise levels, evenly spaced in the logarithm of sigma."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps of the original's latents (euler, normal)."),
                io.Float.Input(
                    "cfg", default=5.0, min=0.0, max=30.0, step=0.1, tooltip="Guidance of the original's latents; scores have none."
                ),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, tooltip="Seed of latents and noise."),
                io.Clip.Input("customised_clip", optional=True, tooltip="The text encoder of the customised model, if it has another."),
                ConceptBank.Input("bank", optional=True, tooltip="The bank whose concepts the prompts name."),
                BEFORE,
            ],
            outputs=outputs(
                "Eps form: mean squared difference per latent value, mean over all latents.",
                io.Float.Output(display_name="likelihood", tooltip="Likelihood form in nats, mean over all latents."),
            ),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model, customised, clip, prompts, latent, levels, steps, cfg, seed, customised_clip=None, bank=None, results=None
    ) -> io.NodeOutput:
        groups, (grid, sigmas) = read_groups(prompts), levels_of(model, levels)
        empty = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        nothing, shape = encode(clip, None, ""), empty.shape
        count = sum(map(len, groups.values()))
        tell, found, done = say.progress(cls.hidden.unique_id, "prompt {} of {}"), {}, 0
        for group, lines in groups.items():
            parts = []
            for text in lines:
                tell(done + 1, count)
                plain = encode(clip, None, bank.vocabulary.plain(text) if bank else text)
                latents = _painted(model, plain, nothing, empty, seed + 2 * done, steps, cfg)
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 2 * done + 1))
                asked = encode(customised_clip or clip, bank, text)
                parts.append(
                    divergence(*(clean(*side, latents, noise, grid, sigmas) for side in ((model, plain), (customised, asked))), grid)
                )
                done += 1
            found[group] = join(parts)
        nats = float(torch.cat([d.likelihood for d in found.values()]).mean())
        return finish(cls, divergence_section(found, grid), results, nats)


def _painted(model, positive: Any, negative: Any, empty: Tensor, seed: int, steps: int, cfg: float) -> Tensor:
    noise = torch.randn(empty.shape, generator=torch.Generator().manual_seed(seed))
    how: Sequence[Any] = (steps, cfg, "euler", "normal", positive, negative, torch.zeros_like(empty))
    return comfy.sample.sample(model, noise, *how, disable_pbar=True, seed=seed)


FISHER_NODES = [CIDMFisherDivergence]
