"""Latent Fisher divergence of a bank's mixtures from the plain model, by groups of prompts, through a backbone."""

from collections.abc import Mapping, Sequence

import torch

from ..backbone import Backbone
from ..bank.bank import Bank
from ..measure.divergence import Divergence, Levels, clean_estimates, divergence
from ..measure.fisher import join
from ..painting.compose import ParsedPrompt, encode, mix, scene_beside
from ..painting.paint import predictor, unit_noise
from ..painting.sampling import denoiser, sample
from .protocol import SampleSettings

PICTURES, LEVELS = 4, 12  # latents of each prompt, noise levels


@torch.no_grad()
def by_group(
    backbone: Backbone,
    bank: Bank,
    groups: Mapping[str, Sequence[str]],
    sampling: SampleSettings,
) -> tuple[dict[str, Divergence], Levels]:
    """Compares, for every prompt, both models on latents that the plain one painted with guidance; their own scores have none."""
    size = sampling.size
    levels = Levels.of(backbone.schedule.ratios(), LEVELS)
    nothing = encode(backbone, ParsedPrompt(""))
    found = {}
    for group, prompts in groups.items():
        parts = []
        for number, prompt in enumerate(prompts):
            start = sampling.seed + PICTURES * number
            plain = encode(backbone, ParsedPrompt(bank.vocabulary.plain(prompt)))
            noise = unit_noise(backbone.family, start, PICTURES, size, size).to(backbone.device)
            latents = sample(
                backbone, plain.expand(PICTURES), nothing.expand(PICTURES), noise, steps=sampling.steps, guidance=sampling.guidance
            )
            added = unit_noise(backbone.family, start + 1_000_000, PICTURES, size, size).to(backbone.device)
            first = clean_estimates(denoiser(backbone, plain), latents, added, levels)
            mixture = mix(backbone, bank, prompt, sampling.config.aggregation)
            text = encode(backbone, mixture)
            predict = predictor(backbone, scene_beside([[mixture]]))
            parts.append(divergence(first, clean_estimates(denoiser(backbone, text, predict), latents, added, levels), levels))
        found[group] = join(parts)
    return found, levels
