"""How a model adds noise and what it predicts: ``x_t = signal_t x_0 + sigma_t n`` with epsilon, v or flow prediction.

Each kind of prediction is one class, and no other file tells them apart. A sampler works on a variable of its own at noise *levels*, from
much to none, in which every kind is solved by the same steps ``x + (x - denoised) / level * (next - level)`` (Karras et al. 2022, as in
k-diffusion): with epsilon and v ``x_0 + level n``, a level being noise over signal, with a flow ``(1 - level) x_0 + level n``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

LARGEST = 4518.0  # of noise over signal: what hosts take where training ended without any signal (zero terminal SNR, Lin et al. 2024)


@dataclass(frozen=True)
class Schedule(ABC):
    """``signal``, ``sigma`` and ``times [T]`` over the trained timesteps, from clean to noise; the model is told ``times``."""

    signal: Tensor
    sigma: Tensor
    times: Tensor
    prediction: ClassVar[str]

    @staticmethod
    def of_alphas(alphas_cumprod: Tensor, prediction: str) -> "Schedule":
        """A diffusion model's, from its cumulative products of alphas ``[T]``; the prediction is "eps" or "v"."""
        abar = alphas_cumprod.double()
        return {"eps": Epsilon, "v": Velocity}[prediction](abar.sqrt().float(), (1 - abar).sqrt().float(), torch.arange(len(abar)))

    @staticmethod
    def straight(shift: float = 1.0, steps: int = 1000) -> "Flow":
        """A rectified flow's, its noise levels ``t`` shifted to ``shift t / (1 + (shift - 1) t)`` (Esser et al. 2024)."""
        t = torch.arange(1, steps + 1) / steps
        sigma = shift * t / (1 + (shift - 1) * t)
        return Flow(1 - sigma, sigma, 1000 * sigma)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return ``clean [B, C, h, w]`` with noise of timesteps ``t [B]``."""
        return at(self.signal, t, clean) * clean + at(self.sigma, t, clean) * noise

    def snr(self, t: Tensor) -> Tensor:
        """Signal to noise ``(signal / sigma)^2``, ``[B]``."""
        return (self.signal[t] / self.sigma[t]).square()

    def ratios(self) -> Tensor:
        """Noise over signal of every trained timestep, ``[T]`` on the CPU; infinite where there is no signal."""
        return (self.sigma.double() / self.signal.double()).float().cpu()

    def timestep_at(self, level: Tensor) -> Tensor:
        """The trained timestep whose noise level is nearest to one given, in its logarithm."""
        return _nearest(level.log().cpu().view(1), self.trained_levels().log())[0]

    def nearest(self, ratio: Tensor) -> Tensor:
        """The trained timestep whose noise over signal is nearest to one given, in its logarithm."""
        return (self.ratios().log() - ratio.log().cpu()).abs().argmin()

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return what the model should answer at timesteps ``t [B]``."""

    @abstractmethod
    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """The weight ``[B]`` of each squared error under which that of ``x_0`` counts ``min(snr, gamma)`` (Hang et al. 2023)."""

    @abstractmethod
    def trained_levels(self) -> Tensor:
        """The noise level of every trained timestep, ``[T]`` on the CPU."""

    @abstractmethod
    def levels(self, steps: int) -> tuple[Tensor, Tensor]:
        """Noise levels ``[steps + 1]`` ending in 0, at evenly spaced timesteps, and the nearest trained timestep ``[steps]`` of each."""

    @abstractmethod
    def level_of(self, x: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """The sampler's variable for ``x = x_0 + ratio n``, and its level."""

    @abstractmethod
    def scale_noise(self, noise: Tensor, level: Tensor) -> Tensor:
        """The sampler's variable that a picture starts from, for unit Gaussian noise at the first level."""

    @abstractmethod
    def scale_input(self, x: Tensor, level: Tensor) -> Tensor:
        """Return what the model reads for the sampler's variable ``x`` at a level."""

    @abstractmethod
    def denoised(self, x: Tensor, output: Tensor, level: Tensor) -> Tensor:
        """The clean latent behind the sampler's variable ``x`` at a level, given the model's output."""


class Diffusion(Schedule):
    """Variance preserving: ``signal^2 + sigma^2 = 1``."""

    def trained_levels(self) -> Tensor:
        return self.ratios().clamp(max=LARGEST)

    def levels(self, steps: int) -> tuple[Tensor, Tensor]:
        """Noise over signal, interpolated in its logarithm."""
        logs = self.trained_levels().log()
        chosen = _between(logs, steps).exp()
        return _ending(chosen), _nearest(chosen.log(), logs)

    def level_of(self, x: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        return x, ratio

    def scale_noise(self, noise: Tensor, level: Tensor) -> Tensor:
        return noise * (1 + level**2).sqrt()

    def scale_input(self, x: Tensor, level: Tensor) -> Tensor:
        return x / (level**2 + 1).sqrt()


class Epsilon(Diffusion):
    """The model answers the noise ``n`` (Ho et al. 2020)."""

    prediction = "eps"

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        snr = self.snr(t)
        return snr.clamp(max=gamma) / snr

    def denoised(self, x: Tensor, output: Tensor, level: Tensor) -> Tensor:
        return x - level * output


class Velocity(Diffusion):
    """The model answers ``signal n - sigma x_0`` (Salimans and Ho 2022)."""

    prediction = "v"

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return at(self.signal, t, clean) * noise - at(self.sigma, t, clean) * clean

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        snr = self.snr(t)
        return snr.clamp(max=gamma) / (snr + 1)

    def denoised(self, x: Tensor, output: Tensor, level: Tensor) -> Tensor:
        return x / (level**2 + 1) - output * level / (level**2 + 1).sqrt()


class Flow(Schedule):
    """Straight, ``signal + sigma = 1``; the model answers ``n - x_0`` (Liu et al. 2023). A level is sigma itself."""

    prediction = "flow"

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - clean

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Its error is that of ``x_0`` weighed by ``(signal / sigma + 1)^2``."""
        snr = self.snr(t)
        return snr.clamp(max=gamma) / (snr.sqrt() + 1).square()

    def trained_levels(self) -> Tensor:
        return self.sigma.cpu()

    def levels(self, steps: int) -> tuple[Tensor, Tensor]:
        """Sigma, interpolated as it is."""
        trained = self.trained_levels()
        chosen = _between(trained, steps)
        return _ending(chosen), _nearest(chosen.log(), trained.log())

    def level_of(self, x: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        return x / (1 + ratio), ratio / (1 + ratio)

    def scale_noise(self, noise: Tensor, level: Tensor) -> Tensor:
        return noise * level

    def scale_input(self, x: Tensor, level: Tensor) -> Tensor:
        return x

    def denoised(self, x: Tensor, output: Tensor, level: Tensor) -> Tensor:
        return x - level * output


def at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """``values [T]`` at ``t [B]``, for latents ``[B, C, h, w]``."""
    return values.to(like.device)[t].view(-1, 1, 1, 1).to(like)


def _between(values: Tensor, steps: int) -> Tensor:
    """``values [T]`` of trained timesteps at ``steps`` evenly spaced ones, from the last to the first."""
    t = torch.linspace(len(values) - 1, 0, steps)
    low, high, w = t.floor().long(), t.ceil().long(), t.frac()
    return (1 - w) * values[low] + w * values[high]


def _ending(levels: Tensor) -> Tensor:
    return torch.cat([levels, torch.zeros(1)])


def _nearest(logs: Tensor, trained: Tensor) -> Tensor:
    """Which of ``trained [T]`` is nearest to each of ``logs [steps]``."""
    return (logs[:, None] - trained[None]).abs().argmin(1)
