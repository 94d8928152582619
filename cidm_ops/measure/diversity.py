"""How varied pictures are: the mean distance of pairs in the space of an image encoder."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .interval import Interval, bootstrap, several

ROUNDING = 1e-9  # of a cosine distance in double precision, and more


def diversity(embeddings: Tensor) -> float:
    """Mean ``1 - cosine`` over all pairs of different pictures ``[N, E]``: 0 where all are the same.

    Raises ``ValueError`` for fewer than two.
    """
    return _pairs(embeddings, torch.arange(len(embeddings)))


def diversity_interval(embeddings: Tensor, draws: int = 1000, seed: int = 0) -> Interval:
    """The interval of ``diversity``, pictures drawn again; a picture is never paired with itself."""
    over = several(len(embeddings), "picture")
    return bootstrap(lambda i: _pairs(embeddings, i), len(embeddings), over=over, draws=draws, seed=seed)


def diversity_ratio(embeddings: Tensor, base: Tensor, draws: int = 1000, seed: int = 0) -> Interval:
    """Diversity over that of ``base``, both drawn again: below 1 the pictures are more alike than the base model's; nan where those are all
    the same.
    """
    over = several(len(embeddings), "picture") + f" and {len(base)} of the base"

    def ratio(own: Tensor, others: Tensor) -> float:
        varied = _pairs(base, others)
        return _pairs(embeddings, own) / varied if varied > ROUNDING else math.nan

    return bootstrap(ratio, len(embeddings), len(base), over=over, draws=draws, seed=seed)


@dataclass(frozen=True)
class DiversityScore:
    """The diversity of pictures, and where the base model's are known theirs and the ratio to them."""

    own: Interval
    base: Interval | None = None
    ratio: Interval | None = None


def score_diversity(embeddings: Tensor, base: Tensor | None = None) -> DiversityScore:
    """Scores pictures ``[N, E]``, beside those of the ``base [M, E]``. Raises ``ValueError`` for fewer than two."""
    own = diversity_interval(embeddings)
    return DiversityScore(own) if base is None else DiversityScore(own, diversity_interval(base), diversity_ratio(embeddings, base))


def _pairs(embeddings: Tensor, chosen: Tensor) -> float:
    """Return the mean cosine distance of the pairs of the chosen that are two different pictures; nan for a draw of one picture only."""
    n = len(embeddings)
    if n < 2:
        raise ValueError(f"{n} picture: at least 2 are needed to compare them with each other")
    times = torch.bincount(chosen, minlength=n).double()
    unit = F.normalize(embeddings.double().cpu(), dim=-1)
    pairs = times.sum() ** 2 - times.square().sum()
    alike = (times @ unit).square().sum() - times.square().sum()
    return float(1 - alike / pairs) if pairs else math.nan
