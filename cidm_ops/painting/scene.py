"""What a model has beside its weights when it paints: the same for every row of every batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bank.concept import Concept
from ..concept_text import ConceptText
from ..method.inversion import Trajectory
from ..method.regions import RegionMask
from .config import BY_KIND, SHARED, NoiseEstimation, ReferenceConfig, ResidualConfig, WeaveConfig


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


@dataclass(frozen=True)
class Reference:
    """R pictures that others refer to: their clean ``latents [R, C, h, w]`` as the model sees them and the unit ``noise`` that they are
    noised with, the ``text [1, N, C]`` that they read, and the names of the self-attentions in which their tokens are seen; of each, where
    its subject is, ``masks [R, H, W]``, or all of it.
    """

    latents: Tensor
    noise: Tensor
    text: Tensor
    how: ReferenceConfig
    layers: tuple[str, ...]
    masks: Tensor | None = None

    def picture(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The latents and the noise of one of them, for each image of a batch ``like [B, C, h, w]``.

        Raises ``ValueError`` for a batch of another size of image.
        """
        if self.latents.shape[1:] != like.shape[1:]:
            (height, width), (own_height, own_width) = like.shape[-2:], self.latents.shape[-2:]
            raise ValueError(
                f"the latent is {height} x {width} and the reference {own_height} x {own_width}: give Reference Attention the latent that "
                "is sampled"
            )
        own = slice(number, number + 1)
        return self.latents[own].to(like).expand_as(like), self.noise[own].to(like).expand_as(like)


def _for_each(pictures: Tensor, like: Tensor) -> Tensor:
    """One of P pictures ``[P, C, h, w]`` for each image of a batch ``like [B, C, h, w]``, over again from the first if there are more."""
    if pictures.shape[1:] != like.shape[1:]:
        (height, width), (own_height, own_width) = like.shape[-2:], pictures.shape[-2:]
        raise ValueError(f"the latent is {height} x {width} and the template {own_height} x {own_width}: sample the latent of Weave")
    return pictures[[image % len(pictures) for image in range(len(like))]].to(like)


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
    """Concepts beside the layers, the places of regions, and how residuals and the passes of noise estimation act; and the ``template``
    that all this is woven into, and the ``reference`` that texts with a mark for it refer to, if there is one.

    A row of a batch reads in region u what its text carries for it, and itself if it carries none. ``texts`` of the regions are for texts
    of other encoders, which carry none. With ``negative`` off, rows that were not composed with concepts have no regions. ``guidance`` is
    that of regions, as a multiple of the sampler's, ``overlap`` says who has a token that they share, and until ``apart``, a part of the
    sampling, they do not look at each other.
    """

    stacks: tuple[ConceptStack, ...] = ()
    masks: tuple[RegionMask, ...] = ()
    texts: tuple[ConceptText, ...] = ()
    negative: bool = True
    estimation: NoiseEstimation | None = None
    infusion: ResidualConfig = ResidualConfig()
    guidance: float = 1.0
    overlap: str = SHARED
    apart: float = 0.0
    template: Template | None = None
    reference: Reference | None = None


def stack_mixtures(concepts: Sequence[Sequence[Concept]], weights: Sequence[Tensor]) -> tuple[list[Concept], Tensor]:
    """Return all concepts of several mixtures, each once, and the weights ``[M, L, G]`` of each mixture ``weights[m] [L, G_m]`` in them."""
    every = {concept.name: concept for mixture in concepts for concept in mixture}
    place = {name: g for g, name in enumerate(every)}
    whole = torch.zeros(len(concepts), len(weights[0]) if weights else 0, len(every))
    for m, (mixture, own) in enumerate(zip(concepts, weights, strict=True)):
        for g, concept in enumerate(mixture):
            whole[m, :, place[concept.name]] = own[:, g]
    return [*every.values()], whole
