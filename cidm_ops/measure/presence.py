"""Which concept a picture or a region shows: the one whose references it lies nearest to, by mean cosine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import scipy.stats
import torch
from torch import Tensor

from .interval import Interval, mean_interval, several


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


@dataclass(frozen=True)
class PresenceScore:
    """Which concepts were found in pictures: ``found [N]`` of ``names`` beside ``expected [N]``; ``right``, how often they are the same;
    ``cosines [N]`` with the one found, ``own [N]`` with the one expected, ``margins [N]``, by how much that lies above the next; and
    ``told_apart``, how well the image encoder separates the references.

    ``collapsed`` is how often a picture is near to no reference of the concept that was asked for: ``own`` lies below ``bound``
    (``collapse_bound``). Both are ``None`` where the references give no bound.
    """

    names: Sequence[str]
    expected: Sequence[str]
    found: Sequence[str]
    right: Interval
    cosines: Tensor
    margins: Tensor
    told_apart: float
    own: Tensor
    bound: float | None
    collapsed: Interval | None

    def confusion(self) -> tuple[list[str], Tensor]:
        """How often each concept was found where each was expected: the names expected, each once, and parts ``[rows, K]`` of 1."""
        rows = list(dict.fromkeys(self.expected))
        counts = torch.zeros(len(rows), len(self.names))
        for want, have in zip(self.expected, self.found, strict=True):
            counts[rows.index(want), self.names.index(have)] += 1
        return rows, counts / counts.sum(1, keepdim=True)


def score_presence(references: Mapping[str, Tensor], embeddings: Tensor, expected: Sequence[str]) -> PresenceScore:
    """Finds which concept each of ``embeddings [N, E]`` shows, by its ``references [M, E]``, beside the one ``expected [N]``.

    Raises ``ValueError`` for a name without references, or references of fewer than two concepts.
    """
    presence = Presence(references)
    if unknown := sorted(set(expected) - set(presence.names)):
        raise ValueError(f"there are no references of {', '.join(map(repr, unknown))}: expected names out of {', '.join(presence.names)}")
    cosines = presence.cosines(embeddings).cpu()
    found = [presence.names[i] for i in cosines.argmax(1).tolist()]
    right = torch.tensor([float(a == b) for a, b in zip(found, expected, strict=True)])
    own = torch.tensor([presence.names.index(name) for name in expected])[:, None]
    mine, over = cosines.gather(1, own)[:, 0], several(len(right), "picture")
    margins, bound = mine - cosines.scatter(1, own, -torch.inf).amax(1), collapse_bound(references)
    collapsed = None if bound is None else mean_interval(collapses(mine, bound), over)
    return PresenceScore(
        presence.names,
        expected,
        found,
        mean_interval(right, over),
        cosines.amax(1),
        margins,
        separation(references),
        mine,
        bound,
        collapsed,
    )


def collapses(cosines: Tensor, bound: float) -> Tensor:
    """1 for each picture that has collapsed, else 0: its mean cosine ``[N]`` with the references of what it should show is below the
    bound. Their mean is the collapse rate, SCR at a threshold of the paper on identities that collapse (2603.26078, our reading).
    """
    return (cosines < bound).float()


def collapse_bound(references: Mapping[str, Tensor]) -> float | None:
    """The mean cosine that best tells a reference of a concept from one of another: where the share of references whose mean cosine with
    the others of their concept is at least that, less the share of those of which it is so with another concept's, is largest (Youden's J).

    ``None`` where no concept has two references, or there is one concept only.
    """
    parts = [torch.nn.functional.normalize(r.float(), dim=-1).cpu() for r in references.values()]
    same, other = [], []
    for i, part in enumerate(parts):
        if len(part) > 1:  # each with the others of its own
            cosines = part @ part.T
            same.append((cosines.sum(1) - cosines.diagonal()) / (len(part) - 1))
        other += [part @ rival.mean(0) for j, rival in enumerate(parts) if j != i]
    if not same or not other:
        return None
    kept, wrong = torch.cat(same).double(), torch.cat(other).double()
    known = torch.cat([kept, wrong]).unique()  # sorted
    bounds = torch.cat([known[:1], (known[1:] + known[:-1]) / 2])
    gain = (kept[None] >= bounds[:, None]).double().mean(1) - (wrong[None] >= bounds[:, None]).double().mean(1)
    best = bounds[gain == gain.max()]
    return float(best[len(best) // 2])


def area_under_curve(same: Tensor, other: Tensor) -> float:
    """How often a pair of ``same [N]`` lies above one of ``other [M]``, ties half: the area under the ROC curve (Mann-Whitney)."""
    above = scipy.stats.mannwhitneyu(same.double().cpu().numpy(), other.double().cpu().numpy(), method="asymptotic").statistic
    return float(above) / (len(same) * len(other))


def separation(references: Mapping[str, Tensor]) -> float:
    """How well an image encoder tells concepts apart: the area under the curve of pairs of references of one concept against pairs of two.

    0.5 is chance. nan where no concept has two references, or there is one concept only.
    """
    parts = [torch.nn.functional.normalize(r.float(), dim=-1) for r in references.values()]
    cosines = torch.cat(parts) @ torch.cat(parts).T
    who = torch.cat([torch.full((len(r),), i) for i, r in enumerate(parts)])
    pairs = torch.triu(torch.ones_like(cosines, dtype=torch.bool), 1)
    alike = who[:, None] == who[None]
    same, other = cosines[pairs & alike], cosines[pairs & ~alike]
    return area_under_curve(same, other) if len(same) and len(other) else float("nan")
