"""Which concept a picture or a region shows: the one whose references it lies nearest to, by mean cosine."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Presence:
    """Concepts by name, each with the embeddings ``[M, E]`` of its references. One of the names may stand for nothing of them all.

    Raises ``ValueError`` for fewer than two names: there would be nothing to tell apart.
    """

    def __init__(self, references: Mapping[str, Tensor]):
        if len(references) < 2:
            raise ValueError(f"references of {len(references)} concept: at least 2 are needed to tell which one is there")
        self.names = list(references)
        self.means = torch.stack([torch.nn.functional.normalize(r.float(), dim=-1).mean(0) for r in references.values()])

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Mean cosine of each of ``embeddings [N, E]`` with the references of each concept, ``[N, K]``."""
        return torch.nn.functional.normalize(embeddings.float(), dim=-1) @ self.means.T

    def found(self, embeddings: Tensor) -> list[str]:
        """The name for each of ``embeddings [N, E]``."""
        return [self.names[i] for i in self.cosines(embeddings).argmax(1).tolist()]

    def table(self, embeddings: Tensor, expected: Sequence[str]) -> tuple[list[str], Tensor]:
        """How often each concept was found where each was expected: the names expected, each once, and parts ``[rows, K]`` of 1."""
        rows = list(dict.fromkeys(expected))
        counts = torch.zeros(len(rows), len(self.names))
        for want, have in zip(expected, self.found(embeddings), strict=True):
            counts[rows.index(want), self.names.index(have)] += 1
        return rows, counts / counts.sum(1, keepdim=True)


def area_under_curve(same: Tensor, other: Tensor) -> float:
    """How often a pair of ``same [N]`` lies above one of ``other [M]``, ties half: the area under the ROC curve (Mann-Whitney)."""
    order = other.double().sort().values
    below, upto = torch.searchsorted(order, same.double()), torch.searchsorted(order, same.double(), right=True)
    return float((below + upto).double().mean() / (2 * len(other)))


def separation(references: Mapping[str, Tensor]) -> float:
    """How well a tower tells concepts apart: the area under the curve of pairs of references of one concept against pairs of two.

    0.5 is chance. nan where no concept has two references, or there is one concept only.
    """
    parts = [torch.nn.functional.normalize(r.float(), dim=-1) for r in references.values()]
    cosines = torch.cat(parts) @ torch.cat(parts).T
    who = torch.cat([torch.full((len(r),), i) for i, r in enumerate(parts)])
    pairs = torch.triu(torch.ones_like(cosines, dtype=torch.bool), 1)
    alike = who[:, None] == who[None]
    same, other = cosines[pairs & alike], cosines[pairs & ~alike]
    return area_under_curve(same, other) if len(same) and len(other) else float("nan")
