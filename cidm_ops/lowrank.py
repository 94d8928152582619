"""Low-rank factors and stacks of them: the algebra that merging, routing and consolidation share.

A concept changes a linear layer ``W [out, in]`` by ``up @ down``. A stack of G concepts is the same thing with rank
``G * r``: downs and ups concatenated, and one weight per concept on the blocks in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """``delta W = up @ down`` with ``up [out, r]`` and ``down [r, in]`` (the paper's A and B).

    Of a convolution, ``kernel`` is ``(kh, kw)`` and ``in`` runs over channels, rows and columns of its weight. ``scale`` weighs
    the ranks: ``[B, r]`` for each row of a batch on its own, ``[B, N, r]`` for each token of it.
    """

    up: Tensor
    down: Tensor
    kernel: tuple[int, ...] = ()
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise ValueError(f"up {tuple(self.up.shape)} and down {tuple(self.down.shape)} do not fit: expected [out, r] and [r, in]")

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    def delta(self) -> Tensor:
        """The full change of the weight, ``[out, in]``."""
        return self.up @ self.down

    def norm(self) -> float:
        """``||up down||_F`` through QR of the factors, never forming ``[out, in]``."""
        return float((torch.linalg.qr(self.up.double()).R @ torch.linalg.qr(self.down.double().T).R.T).norm())

    def to(self, device: torch.device | str) -> "LowRank":
        return replace(self, up=self.up.to(device), down=self.down.to(device))

    @classmethod
    def nearest(cls, delta: Tensor, rank: int, kernel: tuple[int, ...] = ()) -> tuple["LowRank", float]:
        """The best factors of a rank for ``delta [out, in]`` (truncated SVD), and their error relative to it in the Frobenius norm."""
        u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
        root = s[:rank].sqrt()
        error = float(s[rank:].norm() / s.norm().clamp(min=1e-300))
        return cls((u[:, :rank] * root).to(delta.dtype), (root[:, None] * v[:rank]).to(delta.dtype), kernel), error

    def __call__(self, x: Tensor) -> Tensor:
        """``up (down x)`` for ``x [..., in]``, in autocast's precision or the factors' own; ``[..., out]`` in that of ``x``."""
        own = x if torch.is_autocast_enabled(x.device.type) else x.to(self.down.dtype)
        return (self.scale_ranks(own @ self.down.T) @ self.up.T).to(x.dtype)

    def scale_ranks(self, h: Tensor) -> Tensor:
        """Multiply what ``down`` made of a batch, ``[B, ..., r]``, by the scale."""
        if self.scale is None:
            return h
        return h * (self.scale if self.scale.ndim == h.ndim else self.scale.view(len(h), *[1] * (h.ndim - 2), -1))


@dataclass(frozen=True)
class Stack:
    """G low-rank factors of one layer side by side: ``up [out, R]``, ``down [R, in]``, ``R = sum(ranks)``."""

    up: Tensor
    down: Tensor
    ranks: tuple[int, ...]
    kernel: tuple[int, ...] = ()

    @classmethod
    def of(cls, factors: Sequence[LowRank]) -> "Stack":
        """Stack the factors of one layer. Raises ``ValueError`` when there are none or their layers differ."""
        if not factors:
            raise ValueError("a stack needs at least one pair of factors")
        shapes = {(f.up.shape[0], f.down.shape[1]) for f in factors}
        if len(shapes) > 1:
            raise ValueError(f"factors of different layers cannot be stacked: (out, in) are {sorted(shapes)}")
        up, down = torch.cat([f.up for f in factors], 1), torch.cat([f.down for f in factors], 0)
        return cls(up, down, tuple(f.rank for f in factors), factors[0].kernel)

    def spread(self, weights: Tensor) -> Tensor:
        """Weights per concept ``[..., G]`` to weights per rank ``[..., R]``."""
        if weights.shape[-1] != len(self.ranks):
            raise ValueError(f"{weights.shape[-1]} weights for a stack of {len(self.ranks)} concepts")
        repeats = torch.tensor(self.ranks, device=weights.device)
        return weights.repeat_interleave(repeats, -1).to(self.up)

    def merge(self, weights: Tensor) -> LowRank:
        """Return one pair of factors of rank R whose delta is ``sum_g weights[g] * delta_g``; ``weights [G]``."""
        return LowRank(self.up * self.spread(weights), self.down, self.kernel)

    def rows(self, weights: Tensor) -> LowRank:
        """Return factors to lie beside a layer: row b of a batch gets ``sum_g weights[b, g] * delta_g``; ``weights [B, G]``, or ``[B, N,
        G]`` by token.
        """
        return LowRank(self.up, self.down, self.kernel, self.spread(weights))

    def route(self, x: Tensor, weights: Tensor) -> Tensor:
        """Compute ``sum_g weights[..., g] * up_g (down_g x)`` for ``x [..., in]``, ``weights`` broadcasting to ``[..., G]``.

        Every token may have its own mixture; with constant weights it equals ``merge``.
        """
        return ((x.to(self.down.dtype) @ self.down.T * self.spread(weights)) @ self.up.T).to(x.dtype)


def orthonormal_basis(columns: Tensor, tolerance: float = 1e-6) -> Tensor:
    """An orthonormal basis ``[n, k]`` of the column space of ``columns [n, m]``; directions below ``tolerance`` drop out."""
    u, s, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    return u[:, s > tolerance * s.max().clamp(min=1e-30)].to(columns.dtype)
