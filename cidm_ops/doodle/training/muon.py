"""Muon (Jordan et al. 2024) for matrices and convolutions, AdamW for everything else, in one optimiser.

The update of a matrix is its momentum with all singular values pushed to 1, scaled to AdamW's usual step size
(Liu et al. 2025), so both halves share a learning rate.
"""

from collections.abc import Sequence

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
    """``matrices`` get Muon's update, ``others`` AdamW's."""

    def __init__(self, matrices: Sequence[Tensor], others: Sequence[Tensor], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(
            [
                {"params": list(matrices), "muon": True, "weight_decay": weight_decay},
                {"params": list(others), "muon": False, "weight_decay": 0.0},
            ],
            lr,
            (0.9, 0.99),
        )
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure=None):
        muon, adam = self.param_groups
        rank, world = rank_and_count()
        updates = torch.zeros(sum(p.numel() for p in muon["params"]), device=muon["params"][0].device)
        parts = updates.split([p.numel() for p in muon["params"]])
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # directions [m, n] of one shape, and where their updates go
        for p, part in zip(muon["params"], parts, strict=True):
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - self.momentum)
            direction = p.grad.lerp(state["momentum"], self.momentum).flatten(1)
            alike.setdefault(direction.shape, []).append((direction, part))
        for i, (shape, some) in enumerate(alike.items()):
            if i % world == rank:  # processes share the work
                made = orthogonalise(torch.stack([direction for direction, _ in some]))
                for (_, part), update in zip(some, made, strict=True):
                    part.copy_(update.flatten()).mul_(0.2 * max(shape) ** 0.5)
        if world > 1:
            dist.all_reduce(updates)
        for p, part in zip(muon["params"], parts, strict=True):
            p.mul_(1 - muon["lr"] * muon["weight_decay"]).add_(part.view_as(p), alpha=-muon["lr"])
        self.param_groups = [adam]
        try:
            return super().step(closure)
        finally:
            self.param_groups = [muon, adam]
