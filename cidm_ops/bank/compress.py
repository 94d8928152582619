"""A whole bank in one file: per layer one basis of all ups and one of all downs, and small cores per concept.

``up' = U cu`` and ``down' = cd V`` with ``U [out, a]`` and ``V [b, in]`` orthonormal, from the truncated SVD of the concepts' deltas side
by side (the Tucker form of the stack), each scaled to norm 1. Concepts come in one after another: a basis only grows, so what is in it
stays as it is to the last bit. Where a basis would be larger than what it saves, the factors stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..lowrank import LowRank
from .concept import Concept

DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Layer:
    """Bases of one layer as rows: ``up [a, out]``, ``down [b, in]``; None where factors stay as they are."""

    up: Tensor | None
    down: Tensor | None


@dataclass(frozen=True)
class Compressed:
    """``bases`` by layer; ``concepts`` whose factors are cores ``[a', r]`` and ``[r, b']`` in the first a' and b' rows of the bases.

    ``errors`` by name: the Frobenius norm of all that was lost relative to the concept's delta over all layers, measured on what is
    stored, and its ``bounds``: what was given up when the directions were chosen, before rounding to ``dtype``.
    """

    bases: dict[str, Layer] = field(default_factory=dict)
    concepts: tuple[Concept, ...] = ()
    errors: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    tolerance: float = 0.05
    rank: int = 0
    dtype: str = "float32"

    def expand(self) -> list[Concept]:
        """The concepts with the factors that the cores stand for, in float32; token rows, texts and preview as they were."""
        return [
            replace(
                c,
                factors={n: self.expanded(n, f) for n, f in c.factors.items()},
                text_factors={n: self.expanded(n, f) for n, f in c.text_factors.items()},
            )
            for c in self.concepts
        ]

    def expanded(self, name: str, core: LowRank) -> LowRank:
        """``U cu`` and ``cd V`` of one layer."""
        up, down, basis = core.up.float(), core.down.float(), self.bases[name]
        if basis.up is not None:
            up = basis.up[: len(up)].float().T @ up
        if basis.down is not None:
            down = down @ basis.down[: down.shape[1]].float()
        return LowRank(up, down, core.kernel)


@dataclass(frozen=True)
class Directions:
    """Orthonormal ``rows [k, n]`` that could join the ``basis`` of one side (0 up, 1 down) of a layer. What one of them, u, is worth to a
    concept of norm 1, ``||u^T delta||^2``, stands in ``worth [k, G]``; it adds up over directions.
    """

    layer: str
    side: int
    basis: Tensor
    rows: Tensor
    worth: Tensor


Spectra = Sequence[Mapping[str, tuple[Tensor, Tensor, Tensor]]]  # by concept and layer: see spectrum


def compress(concepts: Sequence[Concept], tolerance: float = 0.05, rank: int = 0, dtype: str = "float32") -> Compressed:
    """All concepts on shared bases: at most ``rank`` directions each, or, for 0, as few as keep every error within ``tolerance``.

    Raises ``ValueError`` for options that cannot be and a tolerance finer than ``dtype`` can hold.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if not 0 < tolerance < 1 or rank < 0:
        raise ValueError(f"tolerance {tolerance} and rank {rank}: expected a tolerance between 0 and 1, and a rank of at least 0")
    return add(Compressed(tolerance=tolerance, rank=rank, dtype=dtype), concepts)


@torch.no_grad()
def add(compressed: Compressed, concepts: Sequence[Concept]) -> Compressed:
    """The same with further concepts: the bases grow by the directions that these need, what was there keeps its cores and errors.

    Raises ``ValueError`` for a name that is there already and for another architecture.
    """
    names = [c.name for c in compressed.concepts]
    for c in concepts:
        if c.name in names:
            raise ValueError(f"the compressed bank has a concept {c.name!r} already: rename it first")
        if c.architecture != (base := (*compressed.concepts, *concepts)[0].architecture):
            raise ValueError(f"concept {c.name!r} is for {c.architecture}, the compressed bank for {base}: use another bank")
        names.append(c.name)
    spectra = [{n: spectrum(f) for n, f in c.all_factors.items()} for c in concepts]
    norms = [norm([s for _, s, _ in own.values()]) or 1.0 for own in spectra]
    found = directions(compressed, spectra, norms)
    whole = min((grow(compressed, concepts, spectra, norms, found, share) for share in SHARES), key=numbers)
    errors = dict(compressed.errors)
    for c, size, core in zip(concepts, norms, whole.concepts[len(compressed.concepts) :], strict=True):
        left = [distance(f, whole.expanded(n, core.all_factors[n])) for n, f in c.all_factors.items()]
        errors[c.name] = norm([torch.tensor(left)]) / size
        if not compressed.rank and errors[c.name] > compressed.tolerance:
            raise ValueError(
                f"concept {c.name!r} has an error of {errors[c.name]:.2g} when stored as {compressed.dtype}, the tolerance is "
                f"{compressed.tolerance:g}: allow more, or store float32"
            )
    return replace(whole, errors=errors)


ROOM = 0.96  # of the squared tolerance: what is left is for rounding
SHARES = (0.0, 0.25, 0.5, 0.75)  # of that, for what shared bases leave out; the rest is for the weakest directions of each concept's own


def numbers(compressed: Compressed) -> int:
    """How many numbers are stored as bases and cores."""
    parts = [rows for layer in compressed.bases.values() for rows in (layer.up, layer.down) if rows is not None]
    return sum(t.numel() for t in [*parts, *(t for c in compressed.concepts for f in c.all_factors.values() for t in (f.up, f.down))])


def grow(
    old: Compressed, concepts: Sequence[Concept], spectra: Spectra, norms: Sequence[float], found: Sequence[Directions], share: float
) -> Compressed:
    """Return the compressed bank with the new concepts in it, when ``share`` of what they may lose goes to the bases; their errors are
    still to be measured.
    """
    due = old.tolerance**2 * ROOM
    bases, lost = extend_bases(old, spectra, norms, found, due * share)
    stored, bounds, cores = DTYPES[old.dtype], dict(old.bounds), []
    for c, own, size, given in zip(concepts, spectra, norms, lost.tolist(), strict=True):
        parts = {n: within(bases[n], own[n]) for n in own}
        keep, cut = kept(parts, size, -1.0 if old.rank else due - given)
        core = {n: LowRank(u[:, : keep[n]].to(stored), v[: keep[n]].to(stored), c.all_factors[n].kernel) for n, (u, _, v) in parts.items()}
        cores.append(replace(c, factors={n: core[n] for n in c.factors}, text_factors={n: core[n] for n in c.text_factors}))
        bounds[c.name] = (given + cut) ** 0.5
    return replace(old, bases=bases, concepts=(*old.concepts, *cores), bounds=bounds)


def spectrum(f: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of ``up @ down`` from the factors alone: ``[out, r]``, ``[r]``, ``[r, in]`` in float64."""
    (left, a), (right, b) = torch.linalg.qr(f.up.double().cpu()), torch.linalg.qr(f.down.double().cpu().T)
    u, s, v = torch.linalg.svd(a @ b.T)
    count = min(len(a), len(b))
    return left @ u[:, :count], s[:count], v[:count] @ right.T


def norm(values: Sequence[Tensor]) -> float:
    """The Frobenius norm of all of them together."""
    return float(torch.cat([v.flatten().double() for v in values]).norm()) if values else 0.0


def distance(f: LowRank, g: LowRank) -> float:
    """``||delta_f - delta_g||_F`` by the factors side by side."""
    up, down = torch.cat([f.up.double().cpu(), -g.up.double()], 1), torch.cat([f.down.double().cpu(), g.down.double()], 0)
    return LowRank(up, down).norm()


def directions(old: Compressed, spectra: Spectra, norms: Sequence[float]) -> list[Directions]:
    """The directions of new concepts outside the bases there are, by layer and side, the strongest first."""
    found = []
    for name in dict.fromkeys(n for own in spectra for n in own):
        for side in (0, 1):
            having = [g for g, own in enumerate(spectra) if name in own]
            rows = [(spectra[g][name][0].T, spectra[g][name][2])[side] * spectra[g][name][1][:, None] / norms[g] for g in having]
            stack = torch.cat(rows)
            basis = (old.bases[name].up, old.bases[name].down)[side] if name in old.bases else torch.zeros(0, stack.shape[1])
            if basis is None:
                continue
            for _ in range(2):  # the second projection removes what rounding left
                stack = stack - (stack @ basis.double().T) @ basis.double()
            _, s, v = torch.linalg.svd(stack, full_matrices=False)
            v = v[s > 1e-9]
            worth = torch.zeros(len(v), len(spectra), dtype=torch.float64)
            worth[:, having] = torch.stack([(part @ v.T).square().sum(0) for part in stack.split([len(r) for r in rows])], 1)
            found.append(Directions(name, side, basis, v, worth))
    return found


def extend_bases(
    old: Compressed, spectra: Spectra, norms: Sequence[float], found: Sequence[Directions], due: float
) -> tuple[dict[str, Layer], Tensor]:
    """Return the bases with the directions that new concepts need, and the squared share ``[G]`` of each concept that they leave out.

    The weakest directions of all layers and both sides are left out as long as no concept loses more than ``due``.
    """
    counts = [max(0, old.rank - len(d.basis)) for d in found] if old.rank else chosen([d.worth for d in found], due)
    ranks: dict[str, int] = {}
    for own, size in zip(spectra, norms, strict=True):
        for name, count in kept(own, size, -1.0 if old.rank else old.tolerance**2 * ROOM - due)[0].items():
            ranks[name] = ranks.get(name, 0) + count
    sides: dict[str, list[Tensor | None]] = {n: [layer.up, layer.down] for n, layer in old.bases.items()}
    lost = torch.zeros(len(spectra), dtype=torch.float64)
    for d, count in zip(found, counts, strict=True):
        width, size = d.rows.shape[1], min(count, len(d.rows))
        here = sides.setdefault(d.layer, [None, None])
        if d.layer in old.bases or size * (width + ranks[d.layer]) < ranks[d.layer] * width:
            here[d.side] = torch.cat([d.basis.to(DTYPES[old.dtype]), d.rows[:size].to(DTYPES[old.dtype])])
            lost += d.worth[size:].sum(0)
    return {n: Layer(up, down) for n, (up, down) in sides.items()}, lost


def chosen(worths: Sequence[Tensor], due: float) -> list[int]:
    """How many of the directions of each part stay when the weakest of all go, as long as no concept loses more than ``due``."""
    if not worths:
        return []
    every = torch.cat(list(worths))
    weakest = every.sum(1).argsort()
    gone = weakest[(every[weakest].cumsum(0) <= due).all(1)]
    stays = torch.ones(len(every), dtype=torch.bool)
    stays[gone] = False
    return [int(part.sum()) for part in stays.split([len(w) for w in worths])]


def within(layer: Layer, own: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Balanced cores of one concept in the bases of a layer, ``[a, r]`` and ``[r, b]``, with the singular values between."""
    u, s, v = own
    root = s.sqrt()
    u, v = u * root, root[:, None] * v
    u = u if layer.up is None else layer.up.double() @ u
    v = v if layer.down is None else v @ layer.down.double().T
    u, s, v = spectrum(LowRank(u, v))
    return u * s.sqrt(), s, s.sqrt()[:, None] * v


def kept(parts: Mapping[str, tuple[Tensor, Tensor, Tensor]], size: float, due: float) -> tuple[dict[str, int], float]:
    """How many singular values of each layer of a concept stay, at least one, and the squared share that goes: at most ``due``."""
    worths = [s.square()[:, None] / size**2 for _, s, _ in parts.values()]
    counts = [max(1, count) for count in chosen(worths, due)]
    return dict(zip(parts, counts, strict=True)), sum(float(w[n:].sum()) for w, n in zip(worths, counts, strict=True))
