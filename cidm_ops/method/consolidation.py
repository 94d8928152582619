"""Concept consolidation (CIDM 3.1, Eq. 2), corrected.

The paper's task-specific term multiplies ``A_i A_g^T`` (out x out), which only vanishes when ``A_g`` does: a norm
penalty. Subspaces are orthogonal when ``A_i^T A_g = 0`` (r x r); that is what this file measures, scale free.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..lowrank import LowRank, orthonormal_basis


def earlier_bases(earlier: Sequence[Mapping[str, LowRank]]) -> dict[str, Tensor]:
    """Orthonormal basis ``[out, k]`` of everything earlier concepts write into each layer.

    Computed once per task, so a training step costs the same after a hundred concepts as after one.
    """
    layers: dict[str, list[Tensor]] = {}
    for factors in earlier:
        for name, f in factors.items():
            layers.setdefault(name, []).append(f.up)
    return {name: orthonormal_basis(torch.cat(ups, 1)) for name, ups in layers.items()}


def overlap(up: Tensor, basis: Tensor, eps: float = 1e-6) -> Tensor:
    """Share of ``up [out, r]`` inside ``basis [out, k]``: ``||Q^T A||_F^2 / (||A||_F^2 + eps)``, in [0, 1].

    The derivative with respect to ``up`` is finite at ``up = 0``, where training starts.
    """
    return (basis.T @ up).square().sum() / (up.square().sum() + eps)


def consolidation_loss(factors: Iterable[tuple[str, Tensor]], bases: Mapping[str, Tensor]) -> Tensor:
    """Mean overlap over the layers that earlier concepts use; ``factors`` are ``(name, up)`` of the concept in training.

    Zero, and without gradient, for the first concept.
    """
    overlaps = [overlap(up, bases[name]) for name, up in factors if name in bases]
    return torch.stack(overlaps).mean() if overlaps else torch.zeros(())
