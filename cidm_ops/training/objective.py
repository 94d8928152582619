"""The model's own training objective on noised latents."""

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


def add_noise(clean: Tensor, schedule: Schedule, generator: torch.Generator, noise_offset: float = 0.0, min_snr: float = 0.0) -> Noised:
    """Draws timesteps and noise on the CPU, so that every device trains on the same.

    ``min_snr`` is the gamma of Min-SNR weighting (Hang et al. 2023), 0 for none.
    """
    t = torch.randint(0, len(schedule.sigma), (len(clean),), generator=generator)
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
