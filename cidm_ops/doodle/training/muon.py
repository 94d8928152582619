"""Muon (Jordan et al. 2024) for matrices and convolutions, AdamW for everything else, in one optimiser.

The update of a matrix is its momentum with all singular values pushed to 1, scaled to AdamW's usual step size
(Liu et al. 2025), so both halves share a learning rate.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...training.memory import has_bf16
from .processes import rank_and_count


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest semi-orthogonal matrix to each of ``[g, m, n]``, by Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if has_bf16(matrices.device) else matrices.float()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        g = x @ x.mT
        x = a * x + (b * g + c * g @ g) @ x
    return x if wide else x.mT


class Muon(torch.optim.AdamW):
    """Groups of matrices that are marked ``muon`` get Muon's update, the others AdamW's."""

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, momentum: float = 0.95):
        super().__init__(groups, lr, (0.9, 0.99))
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        matrices = [p for group in groups if group["muon"] for p in group["params"]]
        rank, world = rank_and_count()
        sizes = [p.numel() for p in matrices]
        updates = torch.zeros(sum(sizes), device=matrices[0].device)
        parts = updates.split(sizes)
        for p in matrices:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta, gradients = [self.state[p]["momentum"] for p in matrices], [p.grad for p in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # directions [m, n] of one shape, and where their updates go
        for direction, part in zip(torch._foreach_lerp(gradients, momenta, self.momentum), parts, strict=True):
            alike.setdefault(direction.flatten(1).shape, []).append((direction.flatten(1), part))
        for i, (shape, some) in enumerate(alike.items()):
            if i % world == rank:  # processes share the work
                made = orthogonalise(torch.stack([direction for direction, _ in some]))
                for (_, part), update in zip(some, made.float().mul_(0.2 * max(shape) ** 0.5), strict=True):
                    part.copy_(update.flatten())
        if world > 1:
            dist.all_reduce(updates)
        changes = iter(part.view_as(p) for p, part in zip(matrices, parts, strict=True))
        for group in (group for group in groups if group["muon"]):
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(group["params"], [*islice(changes, len(group["params"]))], alpha=-group["lr"])
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups
