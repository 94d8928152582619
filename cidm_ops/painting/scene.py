"""What a model has beside its weights when it paints: the same for every row of every batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bank.concept import Concept
from ..concept_text import ConceptText
from ..method.regions import RegionMask
from .config import BY_KIND, NoiseEstimation, ResidualConfig


@dataclass(frozen=True)
class ConceptStack:
    """Concepts beside the layers of a model, mixed by ``weights [P, U + 1, L, G]``: for each of P images of a batch (one for all of them
    if P is 1), elsewhere and in each of U regions (everywhere alike if there is only one), in L layers, of G concepts.

    ``scope`` says at which tokens of a text they act. With ``negative`` off they act on texts alone that were composed with concepts.
    """

    concepts: Sequence[Concept]
    weights: Tensor
    negative: bool = True
    scope: str = BY_KIND


@dataclass(frozen=True)
class Scene:
    """Concepts beside the layers, the places of regions, and how residuals and the passes of noise estimation act.

    A row of a batch reads in region u what its text carries for it, and itself if it carries none. ``texts`` of the regions are for texts
    of other encoders, which carry none. With ``negative`` off, rows that were not composed with concepts have no regions.
    """

    stacks: tuple[ConceptStack, ...] = ()
    masks: tuple[RegionMask, ...] = ()
    texts: tuple[ConceptText, ...] = ()
    negative: bool = True
    estimation: NoiseEstimation | None = None
    infusion: ResidualConfig = ResidualConfig()


def stack_mixtures(concepts: Sequence[Sequence[Concept]], weights: Sequence[Tensor]) -> tuple[list[Concept], Tensor]:
    """Return all concepts of several mixtures, each once, and the weights ``[M, L, G]`` of each mixture ``weights[m] [L, G_m]`` in them."""
    every = {concept.name: concept for mixture in concepts for concept in mixture}
    place = {name: g for g, name in enumerate(every)}
    whole = torch.zeros(len(concepts), len(weights[0]) if weights else 0, len(every))
    for m, (mixture, own) in enumerate(zip(concepts, weights, strict=True)):
        for g, concept in enumerate(mixture):
            whole[m, :, place[concept.name]] = own[:, g]
    return [*every.values()], whole
