"""Region noise estimation (CIDM 3.3, Eq. 5), completed: predictions of passes for single regions are blended into the global one.

As printed, ``E* = alpha E + sum_u (1 - alpha) E_u m_u`` leaves ``alpha E`` where no region is and counts overlaps twice. Read as it is
meant: outside ``E``; inside ``alpha E + (1 - alpha)`` times the mean of the regions there, or the one of the highest priority.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from .regions import RegionMask, shares

OVERLAPS = ("mean", "priority")


def blend_weights(
    masks: Sequence[RegionMask], height: int, width: int, alpha: float = 0.1, overlap: str = "mean", feather: float = 0.0
) -> Tensor:
    """Weights ``[U + 1, height, width]`` of the global prediction and each region's; they sum to 1 everywhere.

    ``feather`` widens edges to at least this part of the shorter side, in the blend only. Raises ``ValueError`` for an unknown
    ``overlap`` and an ``alpha`` outside [0, 1].
    """
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap {overlap!r}: expected one of {', '.join(OVERLAPS)}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha}: expected 0 (only the region's own prediction) to 1 (only the global one)")
    blended = [replace(p, feather=max(p.feather, feather), priority=p.priority if overlap == "priority" else 0) for p in masks]
    weights = shares(blended, height, width)
    weights[1:] *= 1 - alpha
    weights[0] = 1 - weights[1:].sum(0)
    return weights.view(-1, height, width)


def blend(whole: Tensor, regions: Sequence[Tensor], weights: Tensor) -> Tensor:
    """One prediction ``[B, C, H, W]`` from the global one and those of the regions; ``weights [B or 1, U + 1, H, W]``."""
    weights = weights.to(whole)
    out = whole * weights[:, :1]
    for u, prediction in enumerate(regions, 1):
        out = out + prediction * weights[:, u : u + 1]
    return out
