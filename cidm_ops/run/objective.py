"""The model's own training objective on noised latents."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noised:
    """Latents ``x [B, 4, h, w]`` at timesteps ``t [B]``, what the model should answer, and the weight ``[B]`` of each."""

    x: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor

    def part(self, which: slice) -> "Noised":
        """Some of the pictures."""
        return Noised(self.x[which], self.t[which], self.target[which], self.weight[which])


def noised(
    clean: Tensor, alphas_cumprod: Tensor, prediction: str, generator: torch.Generator, noise_offset: float = 0.0, min_snr: float = 0.0
) -> Noised:
    """Draw timesteps and noise on the CPU, so that every device trains on the same.

    ``x = sqrt(abar) x0 + sqrt(1 - abar) n``; the target is ``n`` (eps) or ``sqrt(abar) n - sqrt(1 - abar) x0`` (v). Min-SNR
    (Hang et al. 2023) weighs by ``min(snr, gamma) / snr`` for eps and ``min(snr, gamma) / (snr + 1)`` for v.
    """
    t = torch.randint(0, len(alphas_cumprod), (len(clean),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator) + noise_offset * torch.randn(*clean.shape[:2], 1, 1, generator=generator)
    t, noise = t.to(clean.device), noise.to(clean.device)
    abar = alphas_cumprod[t].to(clean)
    signal, sigma = (a.sqrt().view(-1, 1, 1, 1) for a in (abar, 1 - abar))
    target = noise if prediction == "eps" else signal * noise - sigma * clean
    snr = abar / (1 - abar)
    weight = torch.ones_like(snr)
    if min_snr:
        weight = snr.clamp(max=min_snr) / (snr if prediction == "eps" else snr + 1)
    return Noised(signal * clean + sigma * noise, t, target, weight)


def error(guess: Tensor, noised: Noised, mask: Tensor | None) -> Tensor:
    """Weighted squared error of each picture ``[B]``, the mean over the area of ``mask [B, 1, h, w]``: small areas weigh as large ones.

    An empty mask gives 0.
    """
    square = (guess - noised.target).square()
    if mask is None:
        return noised.weight * square.mean((1, 2, 3))
    area = mask.expand_as(square).sum((1, 2, 3))
    return noised.weight * (square * mask).sum((1, 2, 3)) / area.clamp(min=1e-6)
