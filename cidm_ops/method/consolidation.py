"""Concept consolidation (CIDM 3.1, Eq. 2): what keeps a new concept apart from earlier ones while it is learned.

The paper's task-specific term multiplies ``A_i A_g^T`` (out x out), which only vanishes when ``A_g`` does: a norm
penalty. Subspaces are orthogonal when ``A_i^T A_g = 0`` (r x r). ``corrected`` measures that, scale free, against one
orthonormal basis per layer, so a step costs the same after a hundred concepts as after one. ``paper_literal`` and
``released_code`` are kept to reproduce; ``orthogonal`` needs no term at all.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..lowrank import LowRank, orthonormal_basis

MODES = ("corrected", "off", "paper_literal", "released_code", "orthogonal")
Factors = Mapping[str, LowRank]


class Consolidation:
    """The term of one task. This one is zero: for the first concept, ``off`` and ``orthogonal``."""

    def loss(self, factors: Factors) -> Tensor:
        """A number to add to the loss, for the factors of the concept in training."""
        return torch.zeros(())

    def after_step(self, factors: Factors) -> None:
        """Learn what the term itself has to after a step of the factors."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs back."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` gave."""


def consolidation(mode: str, earlier: Sequence[Factors], lr: float, generator: torch.Generator) -> Consolidation:
    """The term of ``mode`` against the factors of earlier concepts. Raises ``ValueError`` for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"consolidation mode {mode!r}: expected one of {', '.join(MODES)}")
    if not earlier or mode in ("off", "orthogonal"):
        return Consolidation()
    if mode == "corrected":
        return Corrected(earlier)
    return Released(earlier) if mode == "released_code" else PaperLiteral(earlier, lr, generator)


def overlap(up: Tensor, basis: Tensor, eps: float = 1e-6) -> Tensor:
    """Share of ``up [out, r]`` inside ``basis [out, k]``: ``||Q^T A||_F^2 / (||A||_F^2 + eps)``, in [0, 1].

    The derivative with respect to ``up`` is finite at ``up = 0``, where training starts.
    """
    return (basis.T @ up).square().sum() / (up.square().sum() + eps)


def earlier_bases(earlier: Sequence[Factors], side: str = "up") -> dict[str, Tensor]:
    """Orthonormal basis ``[out, k]`` of what earlier concepts write into each layer, or ``[in, k]`` of what they read (``down``)."""
    layers: dict[str, list[Tensor]] = {}
    for factors in earlier:
        for name, f in factors.items():
            layers.setdefault(name, []).append(f.up if side == "up" else f.down.T)
    return {name: orthonormal_basis(torch.cat(columns, 1)) for name, columns in layers.items()}


class Corrected(Consolidation):
    """Mean overlap with the subspaces of earlier concepts, over the layers that they use."""

    def __init__(self, earlier: Sequence[Factors]):
        self.bases = earlier_bases(earlier)

    def loss(self, factors: Factors) -> Tensor:
        shares = [overlap(f.up, self.bases[n].to(f.up)) for n, f in factors.items() if n in self.bases]
        return torch.stack(shares).mean() if shares else torch.zeros(())


class Released(Consolidation):
    """The authors' code: mean ``|A_g A_i^T|`` over tasks, layers and entries, plus the mean square of ``A_g - 1``."""

    def __init__(self, earlier: Sequence[Factors]):
        self.earlier = earlier

    def loss(self, factors: Factors) -> Tensor:
        pairs = [(f.up, old[n].up.to(f.up)) for old in self.earlier for n, f in factors.items() if n in old]
        terms = [checkpoint(_released, up, other, use_reentrant=False) for up, other in pairs]
        return torch.stack(terms).mean() if terms else torch.zeros(())


def _released(up: Tensor, other: Tensor) -> Tensor:
    """One pair; computed again in the backward pass, since the out x out matrices of a hundred concepts would take 18 GB on SD1.5."""
    return (up @ other.T).abs().mean() + (up - 1).square().mean()


class PaperLiteral(Consolidation):
    """Eq. 2 as printed: ``sum_i sum_l |A_i A_g^T|`` and ``sum_l ||dW_g - H_g W||^2``, then a step of every H_i and W (Eq. 6-7).

    Where the paper is silent: an out x out matrix counts by the mean of its absolute entries, H and W start as small
    random matrices (at zero they would stay there), and eta is the learning rate of the factors. Eq. 7 has the wrong sign;
    this descends. H is ``[out, out]`` per task and W ``[out, in]``: large, and meant for comparison only.
    """

    SHARED = 10.0  # gamma_2 / gamma_1 of the paper

    def __init__(self, earlier: Sequence[Factors], lr: float, generator: torch.Generator):
        self.earlier, self.lr = earlier, lr
        self.h: dict[str, Tensor] = {}  # [g, out, out], the last one of the task in training
        self.w: dict[str, Tensor] = {}
        for name, f in {name: f for old in reversed(earlier) for name, f in old.items()}.items():
            having = len(self.having(name))
            self.h[name] = 0.01 * torch.randn(having + 1, len(f.up), len(f.up), generator=generator)
            self.w[name] = 0.01 * torch.randn(len(f.up), f.down.shape[1], generator=generator)

    def having(self, name: str) -> list[LowRank]:
        """A layer's factors in the earlier concepts that changed it."""
        return [old[name] for old in self.earlier if name in old]

    def loss(self, factors: Factors) -> Tensor:
        total = torch.zeros((), device=next(iter(factors.values())).up.device)
        for name, f in factors.items():
            if name not in self.h:
                continue
            for old in self.having(name):
                total = total + (old.up.to(f.up) @ f.up.T).abs().mean()
            total = total + self.SHARED * (f.delta() - (self.h[name][-1] @ self.w[name]).to(f.up)).square().sum()
        return total

    @torch.no_grad()
    def after_step(self, factors: Factors) -> None:
        for name, h in self.h.items():
            if name not in factors:
                continue
            f, w = factors[name], self.w[name]
            deltas = torch.stack([*(old.delta() for old in self.having(name)), f.delta().to(w)])
            rest = deltas - h @ w
            step_w = torch.einsum("goi,gon->in", h, rest)
            h += 2 * self.lr * rest @ w.T
            w += 2 * self.lr * step_w

    def state(self) -> dict[str, Tensor]:
        return {f"h.{n}": t for n, t in self.h.items()} | {f"w.{n}": t for n, t in self.w.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for key, tensor in state.items():
            (self.h if key[0] == "h" else self.w)[key[2:]] = tensor


def orthogonal_downs(earlier: Sequence[Factors], shapes: Mapping[str, int], rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Down factors ``[rank, in]`` with orthonormal rows outside all that earlier concepts read; ``shapes`` gives each layer's ``in``.

    Frozen in training, they keep a concept from reacting to what another one reacts to (Orthogonal Adaptation, Po et al.
    2024). Raises ``ValueError`` when a layer has no room left.
    """
    bases = earlier_bases(earlier, "down")
    out = {}
    for name, width in shapes.items():
        taken = bases[name] if name in bases else torch.zeros(width, 0)
        if taken.shape[1] + rank > width:
            raise ValueError(
                f"no room for {rank} more orthogonal directions in {name}: earlier concepts use {taken.shape[1]} of {width}; "
                f"use a lower rank or consolidation 'corrected'"
            )
        fresh = torch.randn(width, rank, generator=generator)
        for _ in range(2):  # the second projection removes what rounding left
            fresh = torch.linalg.qr(fresh - taken @ (taken.T @ fresh)).Q
        out[name] = fresh.T.contiguous()
    return out


def shared_rows(earlier: Sequence[Factors], rank: int) -> dict[str, Tensor]:
    """``W [k, in]``: the ``k`` dominant right singular directions of all earlier ``dW_i`` of a layer, from the factors alone."""
    layers: dict[str, list[Tensor]] = {}
    for factors in earlier:
        for name, f in factors.items():
            layers.setdefault(name, []).append(torch.linalg.qr(f.up).R @ f.down)
    return {n: torch.linalg.svd(torch.cat(rows), full_matrices=False).Vh[:rank] for n, rows in layers.items()}


def shared_loss(factors: Factors, rows: Mapping[str, Tensor]) -> Tensor:
    """Share of ``dW_g`` outside the rows that earlier concepts share: the paper's R2 made well-posed (H in closed form).

    ``||dW (I - W^T W)||_F^2 / (||dW||_F^2 + eps)`` through ``r x r`` products only.
    """
    shares = []
    for name, f in factors.items():
        if name in rows:
            w = rows[name].to(f.down)
            gram = f.up.T @ f.up
            whole = (gram * (f.down @ f.down.T)).sum()
            inside = f.down @ w.T
            shares.append((whole - (gram * (inside @ inside.T)).sum()) / (whole + 1e-6))
    return torch.stack(shares).mean() if shares else torch.zeros(())
