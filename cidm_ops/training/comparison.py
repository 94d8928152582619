"""The comparison of canvases with their captions, in every space, and what stands against it: words that no canvas shows."""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbone import Backbone
from ..bank.concept import Concept
from ..method.contrast import contrast_loss, found_right
from .canvases import Canvas
from .spaces import CaptionSide, Contrast, mean_rows


class Speech(NamedTuple):
    """What can be said in a caption in the place of a concept: its words, and their rows ``[D]`` by encoder."""

    spoken: str
    rows: Mapping[str, Mapping[str, Tensor]]


class Comparison:
    """Canvases of some concepts and what every space sees in them, and the loss of the concepts' words on some of them.

    ``others`` are spoken in the place of concepts and wrong for every canvas.
    """

    def __init__(self, backbone: Backbone, contrast: Contrast, canvases: Sequence[Canvas], others: Sequence[Speech]):
        self.canvases, self.others = list(canvases), list(others)
        self.sides = [CaptionSide(backbone, space) for space in contrast.spaces]
        self.seen = [side.space.embed([c.picture for c in canvases]).to(backbone.device) for side in self.sides]

    def loss(self, rows: Mapping[str, Mapping[str, Tensor]], batch: int, rng: random.Random) -> Tensor:
        """Returns the contrastive loss, the mean over spaces, of so many canvases, given the ``rows`` of words ``[D]`` by encoder."""
        chosen = rng.sample(range(len(self.canvases)), min(batch, len(self.canvases)))
        some = [self.canvases[i] for i in chosen]
        wrong = self.wrong_texts(some, rng)
        losses = []
        for side, seen in zip(self.sides, self.seen, strict=True):
            said = side([canvas.caption for canvas in some], rows[side.encoder])
            others = self.embed_wrong(side, wrong, rows[side.encoder]) if wrong else None
            losses.append(contrast_loss(seen[chosen], said, [canvas.what for canvas in some], side.space.scale, others))
        return torch.stack(losses).mean()

    def wrong_texts(self, some: Sequence[Canvas], rng: random.Random) -> list[tuple[str, Speech]]:
        """Returns a caption of some canvas for others, at most as many as canvases, who are named in it in the place of a concept."""
        found = []
        for other in rng.sample(self.others, min(len(self.others), len(some))):
            canvas = rng.choice(some)
            found.append((canvas.caption.replace(rng.choice(canvas.about), other.spoken), other))
        return found

    @torch.no_grad()
    def embed_wrong(self, side: CaptionSide, wrong: Sequence[tuple[str, Speech]], new: Mapping[str, Tensor]) -> Tensor:
        """Embeds texts that no canvas shows, ``[K, E]``; the ``new`` words that they still have follow nothing of them."""
        rows = {word: row for _, other in wrong for word, row in other.rows.get(side.encoder, {}).items()}
        return side([text for text, _ in wrong], {**new, **rows})

    @torch.no_grad()
    def found(self, rows: Mapping[str, Mapping[str, Tensor]]) -> float:
        """Returns how often a canvas is nearest to a text that says what it shows, of the texts of all canvases; the mean over spaces."""
        texts = {canvas.what: canvas.caption for canvas in self.canvases}
        right = []
        for side, seen in zip(self.sides, self.seen, strict=True):
            said = side(list(texts.values()), rows[side.encoder])
            right.append(found_right(seen, said, [canvas.what for canvas in self.canvases], list(texts)).mean())
        return float(torch.stack(right).mean())


def speeches(earlier: Sequence[Concept], class_words: Sequence[str], encoders: Sequence[str], device: torch.device) -> list[Speech]:
    """Returns what is wrong for pictures of new concepts: the words of earlier concepts, and the plain class words."""
    spoken = [c for c in earlier if c.words]
    named = [Speech(" ".join(c.words), {e: {w: r.to(device) for w, r in mean_rows(c, e).items()} for e in encoders}) for c in spoken]
    return named + [Speech(word, {}) for word in dict.fromkeys(class_words)]
