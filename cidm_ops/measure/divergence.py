"""Latent Fisher divergence of two models, for what the second was not taught (Infusion; our estimator).

The squared difference of their scores on the same noised latents of the first model, in two weightings. With ``D`` what a model takes for
the clean latent behind ``x = x_0 + sigma n``, ``eps = (x - D) / sigma`` and the score is ``-eps / sigma``:

* *eps form*: ``|eps_0 - eps_1|^2`` per latent value, averaged over trained timesteps, as in training;
* *likelihood form*: its sum over latent values, integrated over ``d ln sigma``: ``1/2`` the integral of ``|s_0 - s_1|^2 d(sigma^2)``. It
  bounds the Kullback-Leibler divergence of what the two models paint without guidance, in nats.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .interval import Interval, mean_interval, several

Denoiser = Callable[[Tensor, Tensor], Tensor]  # x = x_0 + sigma n, [B, ...], and one sigma to the clean latent [B, ...]


@dataclass(frozen=True)
class Levels:
    """Noise levels, noise over signal, from much to little: ``sigmas [T]``, each in the middle of its equal part of ``ln sigma``;
    ``shares [T]``, the part of the trained timesteps that is nearest to each; and ``span``, ``ln (sigma_max / sigma_min)``.
    """

    sigmas: Tensor
    shares: Tensor
    span: float

    @classmethod
    def of(cls, trained: Tensor, count: int) -> "Levels":
        """``count`` levels for a model's ``trained`` noise levels. Those without any signal are left out."""
        logs = trained.double().cpu().log()
        logs = logs[logs.isfinite()]
        high, low = float(logs.max()), float(logs.min())
        middles = high - (torch.arange(count, dtype=torch.float64) + 0.5) * (high - low) / count
        nearest = (logs[:, None] - middles[None]).abs().argmin(1)
        return cls(middles.exp().float(), torch.bincount(nearest, minlength=count).double() / len(logs), high - low)


@dataclass(frozen=True)
class Divergence:
    """``eps [K]`` and ``likelihood [K]`` of each latent, and ``curve [T]``, the eps form at each noise level."""

    eps: Tensor
    likelihood: Tensor
    curve: Tensor

    def interval(self, seed: int = 0) -> Interval:
        """The interval of the eps form, latents drawn again."""
        return mean_interval(self.eps, several(len(self.eps), "latent"), seed=seed)

    def likelihood_interval(self, seed: int = 0) -> Interval:
        """The interval of the likelihood form in nats, latents drawn again."""
        return mean_interval(self.likelihood, several(len(self.likelihood), "latent"), seed=seed)


def mean_over_latents(groups: Iterable[Divergence]) -> Interval:
    """Returns the eps form's mean over the latents of all groups, latents drawn again."""
    eps = torch.cat([d.eps for d in groups])
    return mean_interval(eps, several(len(eps), "latent"))


def clean_estimates(model: Denoiser, latents: Tensor, noise: Tensor, levels: Levels) -> Tensor:
    """Return what a model takes for clean at each level, ``[T, K, ...]``, on latents with the same noise ``[K, ...]`` at all of them."""
    return torch.stack([model(latents + sigma * noise, sigma) for sigma in levels.sigmas.to(latents)])


def divergence(first: Tensor, second: Tensor, levels: Levels) -> Divergence:
    """Measure how two models' clean estimates ``[T, K, ...]`` of the same noised latents differ."""
    difference = (first - second).flatten(2).cpu().double() / levels.sigmas.double()[:, None, None]
    squares = difference.square().sum(-1).T
    values = math.prod(first.shape[2:])
    return Divergence(squares @ levels.shares / values, squares.mean(1) * levels.span, squares.mean(0) / values)
