"""What a model has beside its weights when it paints: the same for every row of every batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bank.concept import Concept
from ..concept_text import ConceptText
from ..method.infusion import STREAMS
from ..method.regions import RegionMask
from .scope import BY_KIND


@dataclass(frozen=True)
class ResidualConfig:
    """How residuals act: ``stream`` of ``STREAMS``, in which layers, and in which part of the sampling, from 0 (noise) to 1.

    Raises ``ValueError`` naming the value that cannot be.
    """

    stream: str = "dual"
    layers: str = "all"
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise ValueError(f"stream {self.stream!r}: expected one of {', '.join(STREAMS)}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"start {self.start:g} and end {self.end:g}: expected 0 <= start <= end <= 1")

    @property
    def never(self) -> bool:
        """Whether the part of the sampling is empty."""
        return self.start == 1 or self.end == 0


@dataclass(frozen=True)
class NoiseEstimation:
    """Region noise estimation (CIDM 3.3, Eq. 4 and 5): ``alpha`` of the global prediction inside regions; passes from ``start`` to ``end``
    of the sampling, as parts of it; overlap and feather of the blend; ``bootstrap``: so long, each pass sees plain background outside of
    its region. ``features``: the global pass has the regions' features too.
    """

    alpha: float = 0.1
    start: float = 0.0
    end: float = 1.0
    overlap: str = "mean"
    feather: float = 0.0
    bootstrap: float = 0.0
    features: bool = False


PRESETS = {"fast": None, "paper": NoiseEstimation(), "auto": NoiseEstimation(end=0.3, features=True)}


@dataclass(frozen=True)
class ConceptStack:
    """Concepts beside the layers of a model, mixed by ``weights [P, U + 1, L, G]``: for each of P images of a batch (one for all of them
    if P is 1), elsewhere and in each of U regions (everywhere alike if there is only one), in L layers, of G concepts.

    ``scope`` says at which tokens of a text they act. With ``negative`` off they act on texts alone that were composed with concepts. They
    act from ``start``, a part of the sampling, on.
    """

    concepts: Sequence[Concept]
    weights: Tensor
    negative: bool = True
    scope: str = BY_KIND
    start: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Concepts beside the layers, the places of regions, and how residuals and the passes of noise estimation act.

    A row of a batch reads in region u what its text carries for it, and itself if it carries none. ``texts`` of the regions are for texts
    of other encoders, which carry none. With ``negative`` off, rows that were not composed with concepts have no regions. ``guidance`` is
    that of regions, as a multiple of the sampler's.
    """

    stacks: tuple[ConceptStack, ...] = ()
    masks: tuple[RegionMask, ...] = ()
    texts: tuple[ConceptText, ...] = ()
    negative: bool = True
    estimation: NoiseEstimation | None = None
    infusion: ResidualConfig = ResidualConfig()
    guidance: float = 1.0


def stack_mixtures(concepts: Sequence[Sequence[Concept]], weights: Sequence[Tensor]) -> tuple[list[Concept], Tensor]:
    """Return all concepts of several mixtures, each once, and the weights ``[M, L, G]`` of each mixture ``weights[m] [L, G_m]`` in them."""
    every = {concept.name: concept for mixture in concepts for concept in mixture}
    place = {name: g for g, name in enumerate(every)}
    whole = torch.zeros(len(concepts), len(weights[0]) if weights else 0, len(every))
    for m, (mixture, own) in enumerate(zip(concepts, weights, strict=True)):
        for g, concept in enumerate(mixture):
            whole[m, :, place[concept.name]] = own[:, g]
    return [*every.values()], whole
