"""How a model adds noise and what it predicts: ``x_t = signal_t x_0 + sigma_t n`` with epsilon, v or flow prediction."""

from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTIONS = ("eps", "v", "flow")


@dataclass(frozen=True)
class Schedule:
    """``signal`` and ``sigma [T]`` over the trained timesteps, from clean to noise.

    Variance preserving (``signal^2 + sigma^2 = 1``) for epsilon and v, straight (``signal + sigma = 1``) for flow.
    """

    signal: Tensor
    sigma: Tensor
    prediction: str

    @classmethod
    def of_alphas(cls, alphas_cumprod: Tensor, prediction: str) -> "Schedule":
        """A diffusion model's, from its cumulative products of alphas ``[T]``."""
        abar = alphas_cumprod.double()
        return cls(abar.sqrt().float(), (1 - abar).sqrt().float(), prediction)

    @classmethod
    def straight(cls, shift: float = 1.0, steps: int = 1000) -> "Schedule":
        """A rectified flow's, its noise levels ``t`` shifted to ``shift t / (1 + (shift - 1) t)`` (Esser et al. 2024)."""
        t = torch.arange(1, steps + 1) / steps
        sigma = shift * t / (1 + (shift - 1) * t)
        return cls(1 - sigma, sigma, "flow")

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``clean [B, 4, h, w]`` with noise of timesteps ``t [B]``."""
        return at(self.signal, t, clean) * clean + at(self.sigma, t, clean) * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model should answer: ``n`` (eps), ``signal n - sigma x_0`` (v) or ``n - x_0`` (flow)."""
        if self.prediction == "flow":
            return noise - clean
        return noise if self.prediction == "eps" else at(self.signal, t, clean) * noise - at(self.sigma, t, clean) * clean

    def snr(self, t: Tensor) -> Tensor:
        """Signal to noise ``(signal / sigma)^2``, ``[B]``."""
        return (self.signal[t] / self.sigma[t]).square()


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """``values [T]`` at ``t [B]``, for pictures ``[B, C, h, w]``."""
    return values.to(like.device)[t].view(-1, 1, 1, 1).to(like)
