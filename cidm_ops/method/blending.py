"""Region noise estimation (CIDM 3.3, Eq. 5), completed: predictions of passes for single regions are blended into the global one.

As printed, ``E* = alpha E + sum_u (1 - alpha) E_u m_u`` leaves ``alpha E`` where no region is and counts overlaps twice. Read as it is
meant: outside ``E``; inside ``alpha E + (1 - alpha)`` times the mean of the regions there, or the one of the highest priority.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .regions import Place

OVERLAPS = ("mean", "priority")


def blend_weights(
    places: Sequence[Place], height: int, width: int, alpha: float = 0.1, overlap: str = "mean", feather: float = 0.0
) -> Tensor:
    """Weights ``[U + 1, height, width]`` of the global prediction and each region's; they sum to 1 everywhere.

    ``feather`` softens the masks by a blur of so many latent pixels: only this blend may be soft, the passes' own masks are not.
    Raises ``ValueError`` for an unknown ``overlap`` and an ``alpha`` outside [0, 1].
    """
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap {overlap!r}: expected one of {', '.join(OVERLAPS)}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha}: expected 0 (only the region's own prediction) to 1 (only the global one)")
    if not places:
        return torch.ones(1, height, width)
    masks = torch.stack([softened(F.interpolate(p.mask[None, None].float(), (height, width), mode="area")[0, 0], feather) for p in places])
    if overlap == "priority":
        rank = torch.tensor([float(p.priority) for p in places])[:, None, None].expand_as(masks)
        best = torch.where(masks > 0, rank, -torch.inf).amax(0)
        masks = masks * (rank == best)
    covered = masks.amax(0)  # how far inside of any region
    part = masks / masks.sum(0).clamp(min=1e-6) * covered * torch.tensor([p.strength for p in places])[:, None, None] * (1 - alpha)
    return torch.cat([1 - part.sum(0, keepdim=True), part])


def softened(mask: Tensor, radius: float) -> Tensor:
    """A mask ``[H, W]`` blurred by a Gaussian of that standard deviation in pixels; edges of the picture stay as they are."""
    if radius <= 0:
        return mask
    reach = max(1, round(3 * radius))
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / radius) ** 2)
    bell = bell / bell.sum()
    padded = F.pad(mask[None, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, bell[None, None, None]), bell[None, None, :, None])[0, 0]


def blend(whole: Tensor, regions: Sequence[Tensor], weights: Tensor) -> Tensor:
    """One prediction ``[B, C, H, W]`` from the global one and those of the regions."""
    out = whole * weights[0].to(whole)
    for prediction, weight in zip(regions, weights[1:], strict=True):
        out = out + prediction * weight.to(whole)
    return out
