"""Muon (Jordan et al. 2024) for matrices and convolutions, AdamW for everything else, in one optimiser.

The update of a matrix is its momentum with all singular values pushed to 1, scaled to AdamW's usual step size
(Liu et al. 2025), so both halves share a learning rate.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ...training.memory import has_bf16


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest semi-orthogonal matrix, by Newton-Schulz iteration; ``[m, n]``."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if has_bf16(matrix.device) else matrix.float()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        g = x @ x.T
        x = a * x + (b * g + c * g @ g) @ x
    return x if wide else x.T


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
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        updates = torch.zeros(sum(p.numel() for p in muon["params"]), device=muon["params"][0].device)
        parts = updates.split([p.numel() for p in muon["params"]])
        for i, (p, part) in enumerate(zip(muon["params"], parts, strict=True)):
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - self.momentum)
            if i % world == rank:  # processes share the work
                direction = p.grad.lerp(state["momentum"], self.momentum).flatten(1)
                part.copy_(orthogonalise(direction).flatten()).mul_(0.2 * max(direction.shape) ** 0.5)
        if world > 1:
            dist.all_reduce(updates)
        for p, part in zip(muon["params"], parts, strict=True):
            p.mul_(1 - muon["lr"] * muon["weight_decay"]).add_(part.view_as(p), alpha=-muon["lr"])
        self.param_groups = [adam]
        try:
            return super().step(closure)
        finally:
            self.param_groups = [muon, adam]
