"""The model's own training objective on noised latents."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedule import Schedule


@dataclass(frozen=True)
class Noised:
    """Latents ``x [B, C, h, w]`` at timesteps ``t [B]``, what the model should answer, and the weight ``[B]`` of each."""

    x: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor

    def part(self, which: slice) -> "Noised":
        """Some of the pictures."""
        return Noised(self.x[which], self.t[which], self.target[which], self.weight[which])


def draw_timesteps(count: int, schedule: Schedule, generator: torch.Generator, density: str = "uniform", shift: float = 1.0) -> Tensor:
    """Draws timesteps ``[count]`` of a diffusion model: evenly or ("sigmoid") log-normally in noise over signal (Karras et al. 2022, table
    1), which a flow's logit-normal levels are too. Then noise over signal is multiplied by ``shift``, as ``draw_levels`` does in effect.
    """
    logs = schedule.ratios().log()
    if density == "uniform":
        t = torch.randint(0, len(logs), (count,), generator=generator)
        if shift == 1:
            return t
        drawn = logs[t]
    else:
        drawn = torch.randn(count, generator=generator)
    return (drawn[:, None] + math.log(shift) - logs).abs().argmin(1)


def draw_levels(count: int, density: str, shift: float, generator: torch.Generator) -> Tensor:
    """Draws noise levels ``[count]`` of a flow, from 0 to 1: evenly or ("sigmoid") logit-normally, then shifted to ``shift u / (1 + (shift
    - 1) u)`` (Esser et al. 2024, section 3.1 and equation 23).
    """
    u = torch.randn(count, generator=generator).sigmoid() if density == "sigmoid" else torch.rand(count, generator=generator)
    return shift * u / (1 + (shift - 1) * u)


def shift_of_size(tokens: int) -> float:
    """The shift that suits a picture of so many tokens, as Flux.1 is painted: ``exp(mu)``, mu rising from 0.5 at 256 to 1.15 at 4096."""
    return math.exp(0.5 + 0.65 * (tokens - 256) / (4096 - 256))


def nearest_timesteps(levels: Tensor, schedule: Schedule) -> Tensor:
    """The trained timesteps ``[B]`` of a flow that are nearest to noise levels ``[B]``."""
    return (levels[:, None] - schedule.sigma.cpu()).abs().argmin(1)


def add_noise(
    clean: Tensor, schedule: Schedule, generator: torch.Generator, noise_offset: float = 0.0, min_snr: float = 0.0, t: Tensor | None = None
) -> Noised:
    """Draws noise on the CPU, so that every device trains on the same, and timesteps unless they are given.

    ``min_snr`` is the gamma of Min-SNR weighting (Hang et al. 2023), 0 for none.
    """
    t = draw_timesteps(len(clean), schedule, generator) if t is None else t
    noise = torch.randn(clean.shape, generator=generator) + noise_offset * torch.randn(*clean.shape[:2], 1, 1, generator=generator)
    t, noise = t.to(clean.device), noise.to(clean.device)
    weight = schedule.min_snr_weight(t.cpu(), min_snr).to(clean) if min_snr else torch.ones(len(clean), device=clean.device)
    return Noised(schedule.add_noise(clean, noise, t), t, schedule.target(clean, noise, t), weight)


def error(guess: Tensor, noised: Noised, mask: Tensor | None) -> Tensor:
    """Weighted squared error of each picture ``[B]``, the mean over the area of ``mask [B, 1, h, w]``: small areas weigh as large ones.

    An empty mask gives 0.
    """
    square = (guess - noised.target).square()
    if mask is None:
        return noised.weight * square.mean((1, 2, 3))
    area = mask.expand_as(square).sum((1, 2, 3))
    return noised.weight * (square * mask).sum((1, 2, 3)) / area.clamp(min=1e-6)
