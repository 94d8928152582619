"""Latent Fisher divergence of a bank's mixtures from the plain model, by groups of prompts, through a backbone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..backbone import Backbone
from ..bank.bank import Bank
from ..painting.compose import AggregationConfig, ParsedPrompt, encode, mix, routed
from ..painting.paint import predictor, unit_noise
from ..painting.sampling import denoiser, noise_levels, sample
from .divergence import Divergence, Levels, clean_estimates, divergence

PICTURES, LEVELS = 4, 12  # latents of each prompt, noise levels


def read_groups(text: str) -> dict[str, list[str]]:
    """Prompts by group from lines ``group: prompt``; a line without a group belongs to "prompts". Raises ``ValueError`` for none."""
    groups: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        group, colon, prompt = line.partition(": ")
        groups.setdefault(group.strip() if colon else "prompts", []).append((prompt if colon else line).strip())
    if not groups:
        raise ValueError("there are no prompts: write one a line, as 'group: prompt'")
    return groups


def in_plain_words(bank: Bank, prompt: str) -> str:
    """A prompt with the class word of each concept in its place: what the plain model can read."""
    return "".join(bank.headers[owner]["class_word"] if owner else text for text, owner in bank.vocabulary.parts(prompt))


@torch.no_grad()
def by_group(
    backbone: Backbone,
    bank: Bank,
    groups: Mapping[str, Sequence[str]],
    size: int,
    *,
    mode: str = "exact",
    strength: float = 1.0,
    steps: int = 25,
    guidance: float = 5.0,
    seed: int = 0,
) -> tuple[dict[str, Divergence], Levels]:
    """For every prompt: latents by the plain model (with guidance), then both models on them (without)."""
    levels = Levels.of(noise_levels(backbone.schedule), LEVELS)
    nothing = encode(backbone, ParsedPrompt(""))
    found = {}
    for group, prompts in groups.items():
        parts = []
        for number, prompt in enumerate(prompts):
            start = seed + PICTURES * number
            plain = encode(backbone, ParsedPrompt(in_plain_words(bank, prompt)))
            noise = unit_noise(start, PICTURES, size, size).to(backbone.device)
            latents = sample(backbone, plain.expand(PICTURES), nothing.expand(PICTURES), noise, steps=steps, guidance=guidance)
            added = unit_noise(start + 1_000_000, PICTURES, size, size).to(backbone.device)
            first = clean_estimates(denoiser(backbone, plain), latents, added, levels)
            mixture = mix(backbone, bank, prompt, AggregationConfig(mode=mode, strength=strength))
            text = encode(backbone, mixture)
            predict = predictor(backbone, routed([[mixture]]))
            parts.append(divergence(first, clean_estimates(denoiser(backbone, text, predict), latents, added, levels), levels))
        found[group] = joined(parts)
    return found, levels


def joined(parts: Sequence[Divergence]) -> Divergence:
    """Of all latents of several prompts."""
    curve: Tensor = torch.stack([p.curve for p in parts]).mean(0)
    return Divergence(torch.cat([p.eps for p in parts]), torch.cat([p.likelihood for p in parts]), curve)
