"""What a model has beside its weights when it paints: the same for every row of every batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bank.concept import Concept
from ..concept_text import ConceptText
from ..method.infusion import STREAMS
from ..method.inversion import Trajectory
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


@dataclass(frozen=True)
class WeaveConfig:
    """How concepts are woven into a template (Concept Weaver): ``suppression`` lambda of what is not the concept, inside regions; the parts
    of the sampling in which the queries and keys of self-attention (``attention``) and the features of a residual branch (``residual``)
    are the template's, by default those of Plug-and-Play (Tumanyan et al. 2023); whether what no region covers is locked; and by how many
    latent cells regions ``grow``.

    Raises ``ValueError`` naming the value that cannot be.
    """

    suppression: float = 0.0
    attention: float = 0.5
    residual: float = 0.8
    lock: bool = True
    grow: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.suppression < math.inf:
            raise ValueError(f"suppression {self.suppression:g}: expected 0 (none) or more, such as 0.2")
        for name in ("attention", "residual"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"keep {name} {getattr(self, name):g}: expected a part of the sampling, from 0 (never) to 1 (always)")
        if self.grow < 0:
            raise ValueError(f"grow {self.grow}: expected 0 or more cells of the latent, such as 1")


@dataclass(frozen=True)
class InvertedPicture:
    """A picture on its way up to noise, and the ``text [1, N, C]`` that the plain model read on it. ``latents [P, C, h, w]`` are the
    picture as a host keeps it; ``None`` where that is what the model sees.
    """

    trajectory: Trajectory
    text: Tensor
    latents: Tensor | None = None


@dataclass(frozen=True)
class Template:
    """The picture that concepts are woven into, how, and the names of the layers whose outputs are the template's while its layout is kept:
    linear layers of self-attention, and convolutions.
    """

    picture: InvertedPicture
    how: WeaveConfig
    attention: tuple[str, ...]
    residual: tuple[str, ...]

    def at(self, level: float, like: Tensor) -> Tensor:
        """The sampler's variable of the template at a noise level, for each image of a batch ``like [B, C, h, w]``.

        Raises ``ValueError`` for a batch of another size of image.
        """
        return _for_each(self.picture.trajectory.at(level), like)

    def latents(self, like: Tensor) -> Tensor:
        """The template itself as a host keeps it, for each image of a batch ``like [B, C, h, w]``."""
        return _for_each(self.picture.trajectory.states[0] if self.picture.latents is None else self.picture.latents, like)


def _for_each(pictures: Tensor, like: Tensor) -> Tensor:
    """One of P pictures ``[P, C, h, w]`` for each image of a batch ``like [B, C, h, w]``, over again from the first if there are more."""
    if pictures.shape[1:] != like.shape[1:]:
        (height, width), (own_height, own_width) = like.shape[-2:], pictures.shape[-2:]
        raise ValueError(f"the latent is {height} x {width} and the template {own_height} x {own_width}: sample the latent of Weave")
    return pictures[[image % len(pictures) for image in range(len(like))]].to(like)


PRESETS = {"fast": None, "paper": NoiseEstimation(), "auto": NoiseEstimation(end=0.3, features=True)}


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
    """Concepts beside the layers, the places of regions, and how residuals and the passes of noise estimation act; and the ``template``
    that all this is woven into, if there is one.

    A row of a batch reads in region u what its text carries for it, and itself if it carries none. ``texts`` of the regions are for texts
    of other encoders, which carry none. With ``negative`` off, rows that were not composed with concepts have no regions.
    """

    stacks: tuple[ConceptStack, ...] = ()
    masks: tuple[RegionMask, ...] = ()
    texts: tuple[ConceptText, ...] = ()
    negative: bool = True
    estimation: NoiseEstimation | None = None
    infusion: ResidualConfig = ResidualConfig()
    template: Template | None = None


def stack_mixtures(concepts: Sequence[Sequence[Concept]], weights: Sequence[Tensor]) -> tuple[list[Concept], Tensor]:
    """Return all concepts of several mixtures, each once, and the weights ``[M, L, G]`` of each mixture ``weights[m] [L, G_m]`` in them."""
    every = {concept.name: concept for mixture in concepts for concept in mixture}
    place = {name: g for g, name in enumerate(every)}
    whole = torch.zeros(len(concepts), len(weights[0]) if weights else 0, len(every))
    for m, (mixture, own) in enumerate(zip(concepts, weights, strict=True)):
        for g, concept in enumerate(mixture):
            whole[m, :, place[concept.name]] = own[:, g]
    return [*every.values()], whole
