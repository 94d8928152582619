"""How much concepts write into the same directions: principal angles between the spaces of their ups, layer by layer.

A cosine of 1 is a direction that both have, 0 none in common (Bjoerck and Golub 1973). Two random spaces of rank r in ``out``
dimensions have cosines of about ``sqrt(r / out)``.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..lowrank import LowRank, orthonormal_basis


def principal_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the angles between the column spaces of ``a [n, p]`` and ``b [n, q]``, ``[min(p, q)]``, the largest first."""
    return torch.linalg.svdvals(orthonormal_basis(a).T @ orthonormal_basis(b)).clamp(max=1)


def layer_overlaps(a: Mapping[str, LowRank], b: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The cosines by layer, for layers that both concepts change."""
    return {name: principal_cosines(f.up, b[name].up) for name, f in a.items() if name in b}


@torch.no_grad()
def overlaps(concepts: Sequence[Mapping[str, LowRank]]) -> Tensor:
    """Mean cosine over the layers that two concepts share, ``[G, G]``: 1 with itself, 0 where they share none."""
    count = len(concepts)
    total, shared = torch.zeros(count, count), torch.zeros(count, count)
    for name in dict.fromkeys(n for factors in concepts for n in factors):
        having = [g for g, factors in enumerate(concepts) if name in factors]
        bases = [orthonormal_basis(concepts[g][name].up.float()) for g in having]
        rank = max(q.shape[1] for q in bases)
        padded = torch.stack([torch.nn.functional.pad(q, (0, rank - q.shape[1])) for q in bases])
        i, j = torch.triu_indices(len(having), len(having))
        cosines = torch.linalg.svdvals(padded[i].transpose(1, 2) @ padded[j]).clamp(max=1).sum(1)
        sizes = torch.tensor([float(q.shape[1]) for q in bases])
        rows = torch.tensor(having)
        total[rows[i], rows[j]] += cosines / torch.minimum(sizes[i], sizes[j]).clamp(min=1)
        shared[rows[i], rows[j]] += 1
    mean = (total / shared.clamp(min=1)).triu()
    return mean + mean.triu(1).T


def closest(found: Tensor, names: Sequence[str], count: int = 10) -> str:
    """The pairs with the largest mean cosines of ``found [G, G]``, a line each."""
    i, j = torch.triu_indices(len(names), len(names), 1)
    values, places = found[i, j].topk(min(count, len(i)))
    return "\n".join(f"<{names[i[p]]}> and <{names[j[p]]}>: {v:.3f}" for v, p in zip(values.tolist(), places.tolist(), strict=True))
