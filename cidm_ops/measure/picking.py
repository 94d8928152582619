"""Which of several candidates is taken: the one that is most like its references and truest to its caption, by an image tower."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .scores import alignments, caption_cosines

LIKENESS = 0.5  # the part of likeness in a score; docs/wish.md
BOUND = 0.2  # cosine with the caption, below which a candidate says something else


@dataclass(frozen=True)
class Pick:
    """The ``best`` of N candidates by ``scores [N]``, made of likeness (``images [N]``, mean cosines with references) and obedience
    (``texts [N]``, cosines with the caption), as far as either is known.
    """

    best: int
    scores: Tensor
    images: Tensor | None
    texts: Tensor | None

    def obeys(self, bound: float = BOUND) -> bool:
        """Whether the best one shows what its caption says, as far as that is known."""
        return self.texts is None or float(self.texts[self.best]) >= bound

    @property
    def table(self) -> str:
        """The figures of all candidates, a line each, the best one marked."""
        rows = []
        for number, score in enumerate(self.scores.tolist()):
            parts = [f"{'*' if number == self.best else ' '} {number + 1}: score {score:.3f}"]
            for name, values in (("likeness", self.images), ("text", self.texts)):
                parts += [] if values is None else [f"{name} {float(values[number]):.3f}"]
            rows.append(", ".join(parts))
        return "\n".join(rows)


def pick(
    seen: Tensor | None,
    references: Tensor | None,
    read: Tensor | None = None,
    caption: Tensor | None = None,
    likeness: float = LIKENESS,
) -> Pick:
    """Pick among N candidates by ``likeness * cosine with references + (1 - likeness) * cosine with the caption``.

    ``seen [N, E]`` and ``references [M, E]`` are unit embeddings in the space of an image tower, ``read [N, F]`` and ``caption [1, F]`` in
    one that captions share. A side that is missing does not count. Raises ``ValueError`` for a part that is none, and without both sides.
    """
    if not 0 <= likeness <= 1:
        raise ValueError(f"likeness {likeness:g}: expected a part of the score, from 0 (text alone) to 1 (likeness alone)")
    images = alignments(seen, references).cpu() if seen is not None and references is not None else None
    texts = caption_cosines(read, caption.expand_as(read)).cpu() if read is not None and caption is not None else None
    sides: Sequence[tuple[float, Tensor | None]] = ((likeness, images), (1 - likeness, texts))
    known = [(part, values) for part, values in sides if values is not None]
    if not known:
        raise ValueError("there are neither references nor a caption: give what the pictures are to be like, or what they are to show")
    weight = sum(part for part, _ in known) or 1.0
    scores = torch.stack([part / weight * values for part, values in known]).sum(0)
    if len(known) == 1:
        scores = known[0][1]
    return Pick(int(scores.argmax()), scores, images, texts)
