"""Elastic weight aggregation (CIDM 3.2): how much of each concept every layer gets for a prompt.

``exact`` routes by the identity of the concept words. The soft modes compare the prompt's layer-wise text states with those
of the concepts' words: ``released`` as in the authors' code, ``paper`` as in Eq. 3, ``soft`` with each concept encoded on its
own, so that neither their order nor their number matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bank.concept import Concept
from ..lowrank import LowRank, Stack
from ..models.registry import family_of
from ..text_table import text_table
from ..tokens import Table

NORMS = ("l1", "l2", "max", "none")
SIMILARITIES = ("cosine", "dot")
POSITIONS = ("words", "all")


@dataclass(frozen=True)
class Rule:
    """A rule turns similarities into weights: those below ``threshold`` are 0, then ``scale * s^power / norm``.

    ``positions`` of the prompt that count: its words, or all with start, end and padding. ``mean_first`` averages a concept's
    words before it looks for the best position, else after. ``joint`` encodes all concepts in one text, as the authors do.
    """

    power: float = 16.0
    norm: str = "none"
    similarity: str = "cosine"
    positions: str = "words"
    threshold: float = 0.0
    scale: float = 1.0
    mean_first: bool = False
    joint: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (
            ("norm", self.norm, NORMS),
            ("similarity", self.similarity, SIMILARITIES),
            ("positions", self.positions, POSITIONS),
        ):
            if value not in known:
                raise ValueError(f"{what} {value!r}: expected one of {', '.join(known)}")


EVERY = float("-inf")  # no threshold
RULES = {
    "soft": Rule(),
    "released": Rule(4.0, "l1", positions="all", threshold=EVERY, scale=0.8, joint=True),  # 0.8: the code's --alpha
    "paper": Rule(2.0, "l2", "dot", "all", threshold=EVERY, mean_first=True, joint=True),
}


def soft_weights(context: Tensor, keys: Sequence[Tensor], rule: Rule) -> Tensor:
    """Weights ``[L, G]`` from the prompt's states ``context [L, N, C]`` and those of each concept's words ``keys[g] [L, k, C]``."""
    if rule.mean_first:
        keys = [k.mean(1, keepdim=True) for k in keys]
    every = torch.cat(list(keys), 1)
    if rule.similarity == "cosine":
        context, every = F.normalize(context, dim=-1), F.normalize(every, dim=-1)
    best = torch.einsum("lkc,lnc->lkn", every, context).amax(-1)
    similarity = torch.stack([part.mean(1) for part in best.split([k.shape[1] for k in keys], 1)], 1)
    raised = torch.where(similarity >= rule.threshold, similarity, 0.0).abs().pow(rule.power)
    return rule.scale * (raised if rule.norm == "none" else F.normalize(raised, p=ORDER[rule.norm], dim=1))


ORDER = {"l1": 1.0, "l2": 2.0, "max": float("inf")}


def spoken_as(concept: Concept) -> str:
    """Return what a prompt says to mean a concept: its words, or its first trigger, or its name."""
    return " ".join(concept.words) or next(iter(concept.triggers), concept.name)


def weights_in(weights: Tensor, layers: Sequence[str], name: str) -> Tensor:
    """Take from weights ``[..., L, G]`` those in a linear layer: ``[..., G]``, of the one of the L ``layers`` that is in its block. Outside
    of all such blocks it is the mean.
    """
    here = next((i for i, layer in enumerate(layers) if name.startswith(layer.rpartition(".")[0] + ".")), None)
    return weights.mean(-2) if here is None else weights[..., here, :]


def count_once(concepts: Sequence[Concept], weights: Tensor) -> Tensor:
    """Returns weights ``[..., G]`` in which concepts that share their factors, as those do that were learned together, count once: the one
    whose weight is the largest keeps it, the others get 0.
    """
    sharing: dict[str, list[int]] = {}
    for g, concept in enumerate(concepts):
        if concept.shared:
            sharing.setdefault(concept.shared, []).append(g)
    for members in sharing.values():
        if len(members) > 1:
            own = weights[..., members]
            largest = torch.zeros_like(own).scatter(-1, own.abs().argmax(-1, keepdim=True), 1)
            weights = weights.index_copy(-1, torch.tensor(members, device=weights.device), own * largest)
    return weights


def aggregate(concepts: Sequence[Concept], weights: Tensor, layers: Sequence[str]) -> dict[str, LowRank]:
    """``sum_g weights[l, g] * delta_g`` per linear layer, as one pair of factors; concepts of weight 0 cost nothing, and factors that
    several share count once.

    ``layers`` are the canonical names of the L cross-attention layers in order.
    """
    merged: dict[str, LowRank] = {}
    for name in dict.fromkeys(name for concept in concepts for name in concept.factors):
        once = count_once(concepts, weights_in(weights, layers, name))
        acting = [g for g, concept in enumerate(concepts) if name in concept.factors and once[g] != 0]
        if acting:
            merged[name] = Stack.of([concepts[g].factors[name] for g in acting]).merge(once[acting])
    return merged


@dataclass(frozen=True)
class Route:
    """The stack of a layer, which of the G concepts its weights are those of, and whether it reads the text."""

    stack: Stack
    owners: Sequence[int]
    reads_text: bool

    def to(self, x: Tensor) -> "Route":
        return replace(self, stack=replace(self.stack, up=self.stack.up.to(x), down=self.stack.down.to(x)))


def route(concepts: Sequence[Concept]) -> dict[str, Route]:
    """The stack of all concepts for each linear layer that one of them changes."""
    owners: dict[str, list[int]] = {}
    for g, concept in enumerate(concepts):
        for name in concept.factors:
            owners.setdefault(name, []).append(g)
    stacks = {n: Stack.of([concepts[g].factors[n] for g in having]) for n, having in owners.items()}
    families = {n: family_of(concepts[having[0]].architecture) for n, having in owners.items()}
    return {n: Route(stacks[n], having, families[n].reads_text(n)) for n, having in owners.items()}


def table(weights: Tensor, concepts: Sequence[Concept], layers: Sequence[str]) -> str:
    """The weights as text: a line per layer, a column per concept."""
    family = family_of(concepts[0].architecture) if concepts else None
    names = [family.short(name) if family else name for name in layers]
    head = ["", *(concept.name for concept in concepts)]
    rows = [[name, *(f"{weight:.3f}" for weight in row)] for name, row in zip(names, weights.tolist(), strict=True)]
    return text_table([head, *rows])


def tables_of(concepts: Sequence[Concept]) -> dict[str, Table]:
    """All token tables by word."""
    return {w: t for c in concepts for w, t in c.tables.items()}
