"""DDIM inversion (Song et al. 2021, Eq. 13): the way of a picture up to the noise that the model would have painted it from.

The sampler goes down by Euler steps ``x_low = x_high + slope(x_high, high) (low - high)`` with ``slope(x, level) = (x - clean) / level``.
The way up takes the same slope where it starts, and can be corrected: solved for ``x_high`` by fixed-point iteration (Pan et al. 2023),
a step up is the inverse of the sampler's step down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # the sampler's variable [B, C, h, w] and its level, to the clean latent behind it
ROUNDING = 1e-4  # by which a sampler's highest level may lie above that of a trajectory, as a part of it


@dataclass(frozen=True)
class Trajectory:
    """The sampler's variable on its way from clean latents to noise: ``states [S + 1, P, C, h, w]`` of P pictures at ``levels [S + 1]`` of
    noise, rising from 0.
    """

    levels: Tensor
    states: Tensor

    def at(self, level: float) -> Tensor:
        """The variable ``[P, C, h, w]`` at a level, on the straight line between the nearest two that are known.

        Raises ``ValueError`` for a level above the last one.
        """
        last = float(self.levels[-1])
        if level > last * (1 + ROUNDING):
            raise ValueError(
                f"the sampler is at noise level {level:g}, the inverted picture ends at {last:g}: sample with the sigmas that it was "
                "inverted with"
            )
        upper = int(torch.searchsorted(self.levels, level).clamp(1, len(self.levels) - 1))
        low, high = self.levels[upper - 1 : upper + 1].tolist()
        return torch.lerp(self.states[upper - 1], self.states[upper], min((level - low) / (high - low), 1.0))


def slope(x: Tensor, level: Tensor, denoise: Denoise) -> Tensor:
    """``dx / dlevel`` of the sampler's variable ``[B, C, h, w]`` at a level above 0 (Karras et al. 2022, Eq. 4)."""
    return (x - denoise(x, level)) / level


def invert(
    clean: Tensor, levels: Tensor, denoise: Denoise, corrections: int = 0, on_step: Callable[[int, int], None] = lambda step, steps: None
) -> Trajectory:
    """Follow clean latents ``[P, C, h, w]`` up the ``levels [S + 1]`` of noise, which rise from 0. Each step asks the model once, and once
    more for each of the ``corrections``.

    Raises ``ValueError`` for levels that do not rise from 0.
    """
    if len(levels) < 2 or float(levels[0]) != 0 or not bool((levels.diff() > 0).all()):
        raise ValueError(f"noise levels {[round(v, 3) for v in levels.tolist()][:6]}: expected two or more that rise from 0")
    states = [clean]
    for number, (low, high) in enumerate(pairwise(levels), 1):
        there = states[-1]
        for _ in range(1 + corrections):
            there = states[-1] + slope(there, high, denoise) * (high - low)
        states.append(there)
        on_step(number, len(levels) - 1)
    return Trajectory(levels.cpu(), torch.stack(states).cpu())


def descend(noise: Tensor, levels: Tensor, denoise: Denoise) -> Tensor:
    """Sample down from the last of the ``levels [S + 1]`` to the first, 0, by Euler steps: the way back of ``invert``."""
    x = noise
    for high, low in pairwise(levels.flip(0)):
        x = x + slope(x, high, denoise) * (low - high)
    return x
