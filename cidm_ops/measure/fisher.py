"""Prompts of a latent Fisher divergence: their groups, and what the plain model reads in the place of concepts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .divergence import Divergence


def read_groups(text: str) -> dict[str, list[str]]:
    """Prompts by group from lines ``group: prompt``; a line without a group belongs to "prompts". Raises ``ValueError`` for none."""
    groups: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        group, colon, prompt = line.partition(": ")
        groups.setdefault(group.strip() if colon else "prompts", []).append((prompt if colon else line).strip())
    if not groups:
        raise ValueError("there are no prompts: write one a line, as 'group: prompt'")
    return groups


def join(parts: Sequence[Divergence]) -> Divergence:
    """Join what was measured on the latents of several prompts."""
    curve: Tensor = torch.stack([p.curve for p in parts]).mean(0)
    return Divergence(torch.cat([p.eps for p in parts]), torch.cat([p.likelihood for p in parts]), curve)
