"""Concept Weaver (Kwon et al., CVPR 2024): concepts painted over the things of a template picture, which keeps its layout.

The fusion of features, ``sum_i h_i M_i + h_bg M_bg``, is that of regions (``regions.py``). Here is what it has besides: the suppression of
what is not the concept, masks that are grown, and, ours, a lock of what no region covers.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .regions import RegionMask, cells


def suppress(fused: Tensor, plain: Tensor, amount: float) -> Tensor:
    """Concept-free suppression, ``(1 + lambda) h_fuse - lambda h_base``, of attention outputs ``[P, M, C]``: away from what the plain
    model, which reads the template's text, would answer.
    """
    return (1 + amount) * fused - amount * plain


def grow(masks: Sequence[RegionMask], width: int, height: int, columns: int) -> list[RegionMask]:
    """Grow masks by ``width`` cells of a grid of ``height x columns`` cells. Nobody grows into what another one holds: dense masks deform
    what is painted, and two things that touch stay two.
    """
    if not width or not masks:
        return [*masks]
    # all on one canvas, no coarser than the grid nor than any of them
    size = [max(side, *(m.mask.shape[d] for m in masks)) for d, side in enumerate((height, columns))]
    dense = torch.stack([F.interpolate(m.mask[None, None].float(), size, mode="nearest")[0, 0] for m in masks])
    down, across = (-(-side * width // count) for side, count in zip(size, (height, columns), strict=True))
    wide = F.max_pool2d(F.max_pool2d(dense[:, None], (2 * down + 1, 1), 1, (down, 0)), (1, 2 * across + 1), 1, (0, across))[:, 0]
    free = 1 - dense.amax(0)
    return [replace(m, mask=torch.maximum(own, grown * free)) for m, own, grown in zip(masks, dense, wide, strict=True)]


def covered(masks: Sequence[RegionMask], height: int, columns: int) -> Tensor:
    """Whether any region covers a cell, ``[height, columns]``."""
    if not masks:
        return torch.zeros(height, columns, dtype=torch.bool)
    return torch.stack([cells(m.mask, height, columns) for m in masks]).amax(0) > 0


def lock(x: Tensor, template: Tensor, masks: Sequence[RegionMask]) -> Tensor:
    """``x [B, C, h, w]`` where a region is, the template at the same noise level elsewhere: whatever a sampler did there is undone."""
    return torch.where(covered(masks, *x.shape[-2:]).to(x.device), x, template.to(x))
