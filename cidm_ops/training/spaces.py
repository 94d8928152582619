"""Spaces that pictures and texts share, as contrast sees them: an image tower, and the way there from a text encoder of the base.

Contrast has to reach the token rows that the model itself reads, so texts go through the base's own encoder: for Stable Diffusion 1 that is
the text side of CLIP-L, whose projection a full CLIP file has; in SDXL's second encoder the projection is in the checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone
from ..bank.concept import Concept
from ..models.family import Family
from ..tokens import bind, hide
from .canvases import CutOut

CLIP_SCALE, CLIP_SIDE = 100.0, 224


@dataclass(frozen=True)
class Space:
    """``see`` embeds pictures ``[B, 3, H, W]`` in [-1, 1], ``[B, E]``. Texts come from the ends ``[B, D]`` that ``encoder`` gives them, by
    ``read``, or by the projection of the encoder itself where that is ``None``. ``scale`` multiplies cosines, pictures have ``side``
    pixels, and ``about`` tells one tower from another.
    """

    encoder: str
    see: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Tensor] | None = None
    scale: float = CLIP_SCALE
    side: int = CLIP_SIDE
    about: str = ""

    @torch.no_grad()
    def embed(self, pictures: Sequence[Tensor], together: int = 16) -> Tensor:
        """Embeds pictures ``[3, S, S]``, some at once: ``[N, E]``."""
        parts = [torch.stack(list(pictures[i : i + together])) for i in range(0, len(pictures), together)]
        return torch.cat([self.see(part).detach().float() for part in parts])


@dataclass(frozen=True)
class Contrast:
    """A contrast is what pictures and words are compared by: spaces, and the common things that concepts stand beside."""

    spaces: tuple[Space, ...]
    common: tuple[CutOut, ...] = field(default=(), repr=False)

    @property
    def side(self) -> int:
        """How many pixels of a canvas's side its towers look at."""
        return max(space.side for space in self.spaces)

    @property
    def digest(self) -> list[str]:
        """What tells it from others: its towers, and the things."""
        return [f"{space.encoder} {space.about} {space.scale:g}" for space in self.spaces] + [cut.phrase for cut in self.common]


def space_for(
    backbone: Backbone,
    see: Callable[[Tensor], Tensor],
    width: int,
    projection: Tensor | None = None,
    *,
    scale: float = CLIP_SCALE,
    side: int = CLIP_SIDE,
    about: str = "",
) -> Space:
    """Returns the space of an image tower that embeds pictures as ``[B, width]``: with ``projection [width, D]``, that of the text
    side which came with it, for the base's encoder that is as wide; else for the encoder whose own projection leads there.

    Raises ``ValueError`` if no text encoder of the base leads into it, or concepts on the base have no words.
    """
    check_contrastable(backbone.family)
    family = backbone.family
    widths = {name: backbone.token_rows(torch.tensor([0]), name).shape[-1] for name in backbone.encoders}
    if projection is not None:
        if projection.shape[0] != width:
            raise ValueError(
                f"the text projection leads to width {projection.shape[0]}, the image tower's is {width}: take both of one CLIP"
            )
        fitting = [name for name, own in widths.items() if own == projection.shape[1]]
        if fitting:
            weight = projection.float().to(backbone.device)
            return Space(fitting[0], see, lambda ends: ends @ weight.T, scale, side, about)
        raise ValueError(
            f"the text projection reads states of width {projection.shape[1]}, and {family.title} has "
            f"{', '.join(f'{own} ({name})' for name, own in widths.items())}: take the CLIP that the base has its text encoder from"
        )
    own = own_projections(backbone)
    fitting = [name for name, leads in own.items() if leads == width]
    if fitting:
        return Space(fitting[0], see, None, scale, side, about)
    has = ", ".join(f"{leads} ({name})" for name, leads in own.items()) or "none"
    raise ValueError(
        f"no text encoder of {family.title} leads into the image tower's space of width {width} (projections of its own: {has}): give the "
        "whole CLIP, whose text side has its text_projection"
    )


def check_contrastable(family: Family) -> None:
    """Raises ``ValueError`` for a family on which concepts have no words of their own."""
    if not family.layerwise:
        raise ValueError(f"{family.title} has no words of its own that could be contrasted: take Stable Diffusion 1, SDXL or Doodle")


def encoder_of(backbone: Backbone, space: Space) -> str:
    """Returns the name of the text encoder that leads into a space, the base's first one where it names none."""
    return backbone.family.encoder(space.encoder).name


def own_projections(backbone: Backbone) -> dict[str, int]:
    """Returns the widths of the spaces that text encoders of a base lead to by projections of their own, by their names."""
    models: dict[str, Any] = {e.name: backbone.texts[e.name] for e in backbone.family.encoders if e.pooled}
    return {name: model.text_projection.weight.shape[0] for name, model in models.items()}


class CaptionSide:
    """The caption side embeds texts in a space, differentiable in the rows of the concepts' words."""

    def __init__(self, backbone: Backbone, space: Space):
        self.backbone, self.space, self.encoder = backbone, space, encoder_of(backbone, space)
        self.known: dict[str, tuple[Tensor, dict[int, str]]] = {}

    def __call__(self, texts: Sequence[str], rows: Mapping[str, Tensor]) -> Tensor:
        """Embeds texts whose concept words have ``rows``, ``[D]`` each: unit embeddings ``[B, E]``. Every text is computed once."""
        each = list(dict.fromkeys(texts))
        parts = [self.tokens(text, rows) for text in each]
        ids, space = torch.stack([own for own, _ in parts]), self.space
        plain = self.backbone.token_rows(ids, self.encoder)
        chosen = [{word: rows[word][None] for word in hidden.values()} for _, hidden in parts]
        bound = [bind(own, row, hidden, c)[0] for (own, hidden), row, c in zip(parts, plain, chosen, strict=True)]
        ends = self.backbone.end_states(ids, torch.stack(bound), self.encoder, projected=space.read is None)
        found = F.normalize(space.read(ends) if space.read else ends, dim=-1)
        return found[[each.index(text) for text in texts]]

    def tokens(self, text: str, words: Mapping[str, Tensor]) -> tuple[Tensor, dict[int, str]]:
        """Returns ids ``[N]`` of a text's first chunk, which is all that CLIP reads, and which stand for words."""
        if text not in self.known:
            hidden_text, hidden = hide(text, words, self.backbone.family.placeholders)
            ids = self.backbone.tokenize(hidden_text, self.encoder)[0].to(self.backbone.device)
            self.known[text] = ids, hidden
        return self.known[text]


def mean_rows(concept: Concept, encoder: str) -> dict[str, Tensor]:
    """Returns the row ``[D]`` of each word of a concept, the mean of what the layers read; nothing for one without words."""
    return {word: table.rows[encoder][list(table.layers)].float().mean(0) for word, table in concept.tables.items()}
