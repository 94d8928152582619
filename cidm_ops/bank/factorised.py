"""Factors from what the LoRA files of others hold of a layer: LoRA, LoCon, LoHa, LoKr (LyCORIS, Yeh et al. 2024), full deltas.

A Hadamard product of factors is a pair of factors again (the ranks multiply), and the singular vectors of a Kronecker
product are products of those of its sides, so neither is ever multiplied out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..lowrank import LowRank


def factors_of(parts: Mapping[str, Tensor], rank: int, kernel: tuple[int, ...] = ()) -> tuple[LowRank, int, float]:
    """Factors of a layer without its alpha, the dimension that alpha is divided by (0: it has none), and their relative error.

    A LoRA keeps its rank and is exact, all else is brought to at most ``rank``. Raises ``ValueError`` for parts that are missing or
    do not fit.
    """
    check_one_kind(parts)
    try:
        if any(part.startswith("hada_") for part in parts):
            factors, dim = loha(parts)
            factors, error = truncated(factors, rank)
        elif any(part.startswith("lokr_") for part in parts):
            factors, dim, error = lokr(parts, rank)
        elif "diff" in parts:
            dim, (factors, error) = 0, LowRank.nearest(parts["diff"].flatten(1), rank)
        else:
            factors, dim, error = lora(parts["up"], parts["down"], parts.get("mid")), len(parts["down"]), 0.0
    except KeyError as missing:
        raise ValueError(f"{missing.args[0]} is missing beside {', '.join(sorted(parts)) or 'its alpha alone'}") from None
    except (RuntimeError, IndexError, TypeError, ValueError) as error_:
        raise ValueError(f"its parts do not fit: {', '.join(f'{k} {tuple(t.shape)}' for k, t in sorted(parts.items()))}") from error_
    given = max((tuple(t.shape[2:]) for t in parts.values() if t.ndim == 4), default=kernel)
    if given != kernel and (given, kernel) != ((1, 1), ()):
        raise ValueError(f"its parts have the kernel {given}: expected {kernel or 'a linear layer'}")
    return LowRank(factors.up, factors.down, kernel), dim, error


def check_one_kind(parts: Mapping[str, Tensor]) -> None:
    """Raises ``ValueError`` for parts of more than one kind, of which one would be passed over."""
    kinds = [{"up", "down", "mid"}, {part for part in parts if part.startswith("hada_")}, {"diff"}]
    kinds.append({part for part in parts if part.startswith("lokr_")})
    twice = [w for w in ("lokr_w1", "lokr_w2") if w in parts and any(f"{w}_{side}" in parts for side in "ab")]
    core = "lokr_t2" in parts and "lokr_w2" in parts
    if twice or core or sum(bool(kind & parts.keys()) for kind in kinds) > 1:
        raise ValueError(f"{', '.join(sorted(parts))} stand beside each other: expected the parts of one kind")


def lora(up: Tensor, down: Tensor, mid: Tensor | None = None) -> LowRank:
    """``up [out, r, …]``, ``down [r, in, …]``; a LoCon in three parts has its kernel in ``mid [r, r, kh, kw]``."""
    down = down if mid is None else torch.einsum("orhw,ri->oihw", mid, down.flatten(1))
    return LowRank(up.flatten(1), down.flatten(1))


def loha(parts: Mapping[str, Tensor]) -> tuple[LowRank, int]:
    """``(w1_a w1_b) * (w2_a w2_b)``; with a core ``t [r, r, kh, kw]`` each side is ``w_a^T t w_b``."""
    sides = []
    for i in (1, 2):
        a, b, t = parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"], parts.get(f"hada_t{i}")
        sides.append(LowRank(a, b.flatten(1)) if t is None else LowRank(a.T, torch.einsum("ijhw,jc->ichw", t, b).flatten(1)))
    one, two = sides
    up = torch.einsum("or,os->ors", one.up, two.up).flatten(1)
    down = torch.einsum("ri,si->rsi", one.down, two.down).flatten(0, 1)
    return LowRank(up, down), len(parts["hada_w1_b"])


def lokr(parts: Mapping[str, Tensor], rank: int) -> tuple[LowRank, int, float]:
    """``w1 (x) w2`` at a rank; each of them whole or a product, ``w2`` of a convolution also ``w2_a^T t2 w2_b``."""
    dim = len(parts.get("lokr_w2_b", parts.get("lokr_w1_b", ())))
    if (w1 := parts.get("lokr_w1")) is None:
        w1 = parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if (w2 := parts.get("lokr_w2")) is None:
        a, b, t = parts["lokr_w2_a"], parts["lokr_w2_b"], parts.get("lokr_t2")
        w2 = a @ b.flatten(1) if t is None else torch.einsum("ijhw,jc,io->ochw", t, b, a)
    factors, error = kronecker(w1.flatten(1), w2.flatten(1), rank)
    return factors, dim, error


def kronecker(one: Tensor, two: Tensor, rank: int) -> tuple[LowRank, float]:
    """The best factors of a rank for ``one (x) two``, and their relative error."""
    (u1, s1, v1), (u2, s2, v2) = (torch.linalg.svd(w.double(), full_matrices=False) for w in (one, two))
    s, order = torch.outer(s1, s2).flatten().sort(descending=True)
    i, j, root = order[:rank] // len(s2), order[:rank] % len(s2), s[:rank].sqrt()
    up = torch.einsum("ar,br->abr", u1[:, i] * root, u2[:, j]).flatten(0, 1)
    down = torch.einsum("ra,rb->rab", v1[i] * root[:, None], v2[j]).flatten(1)
    return LowRank(up.to(one), down.to(one)), float(s[rank:].norm() / s.norm().clamp(min=1e-300))


def truncated(factors: LowRank, rank: int) -> tuple[LowRank, float]:
    """The best factors of at most ``rank`` for a delta that is given by its factors, and their relative error in the Frobenius norm."""
    if factors.rank <= rank:
        return factors, 0.0
    if factors.rank >= min(len(factors.up), factors.down.shape[1]):
        return LowRank.nearest(factors.delta(), rank, factors.kernel)
    (q_up, r_up), (q_down, r_down) = torch.linalg.qr(factors.up.double()), torch.linalg.qr(factors.down.double().T)
    core, error = LowRank.nearest(r_up @ r_down.T, rank)
    return LowRank((q_up @ core.up).to(factors.up), (core.down @ q_down.T).to(factors.down), factors.kernel), error
