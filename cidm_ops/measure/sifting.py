"""Pictures that another model made of a thing, such as an edit model from a photo of it, sifted: those that show the same individual stay
and grow the data set that it is learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..printable import brief
from ..training.config import PER_ORIGINAL
from ..training.crops import resize
from ..training.dataset import Dataset, grow
from .scores import ImageEncoder, alignments, embed_all
from .sheets import Strip, sheet

KEPT, OTHER, REPEATED, ENOUGH = "kept", "somebody else", "a repetition", "more than asked for"
SLACK = 0.05
SIDE, SAME = 16, 0.02  # pixels of a thumbnail, and the mean difference in [0, 1] below which two show the same


@dataclass(frozen=True)
class Sifting:
    """How pictures are sifted: at most ``per_original`` are kept for each original; a picture shows somebody else if its likeness is more
    than ``slack`` below the original's that is least like the others, or below ``least`` if that is above 0.

    Raises ``ValueError`` for a count below 1, a slack below 0 or a likeness that is none.
    """

    per_original: int = PER_ORIGINAL
    slack: float = SLACK
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.per_original < 1:
            raise ValueError(f"{self.per_original} pictures for each original: expected at least 1")
        if self.slack < 0 or not 0 <= self.least < 1:
            raise ValueError(f"slack {self.slack:g} and least {self.least:g}: expected 0 or more, and a likeness from 0 to below 1")

    def bound(self, originals: Tensor) -> float | None:
        """The likeness below which a picture shows somebody else, by the embeddings ``[M, E]`` of the originals; ``None`` where a single
        original tells of none.
        """
        if self.least:
            return self.least
        count = len(originals)
        if count < 2:
            return None
        cosines = originals @ originals.T
        return float(((cosines.sum(1) - cosines.diagonal()) / (count - 1)).min()) - self.slack


@dataclass(frozen=True)
class Sifted:
    """What became of pictures: the ``likeness [N]`` of each to the originals, a verdict on each, and the ``bound`` if there was one."""

    likeness: Tensor
    verdicts: Sequence[str]
    bound: float | None

    @property
    def kept(self) -> list[int]:
        return [i for i, verdict in enumerate(self.verdicts) if verdict == KEPT]

    def text(self) -> str:
        """How many stay, and why the rest does not."""
        counts = {verdict: self.verdicts.count(verdict) for verdict in (KEPT, OTHER, REPEATED, ENOUGH)}
        said = f"{counts.pop(KEPT)} of {len(self.verdicts)} pictures kept"
        rest = [f"{count} {verdict}" for verdict, count in counts.items() if count]
        bound = "" if self.bound is None else f"; likeness of at least {self.bound:.3f}"
        return said + (f" ({', '.join(rest)})" if rest else "") + bound

    def remarks(self) -> list[str]:
        """What a person should know of it."""
        out = []
        if self.bound is None:
            out.append(
                "a single original does not tell how far apart pictures of it lie, so the most alike are kept, whoever they show: look at "
                "them, or say the least likeness"
            )
        if not self.kept:
            best = f", the most alike has {float(self.likeness.max()):.3f}" if len(self.likeness) else ""
            out.append(f"none of the pictures is kept{best}: the originals stay alone")
        return out


def sift(
    pictures: Tensor, originals: Tensor, how: Sifting | None = None, shown: Tensor | None = None, shown_originals: Tensor | None = None
) -> Sifted:
    """Sifts pictures by unit embeddings ``[N, E]`` beside those of the originals ``[M, E]``, the most alike first: likeness is the mean
    cosine with the originals (IA). ``shown [N, P]`` and ``shown_originals [M, P]`` are ``thumbnails``: one that shows the same as an
    original or as one that is kept is left out.
    """
    how = how or Sifting()
    likeness, bound = alignments(pictures, originals).cpu(), how.bound(originals)
    taken = [] if shown_originals is None else list(shown_originals)
    verdicts, room = [""] * len(likeness), how.per_original * len(originals)
    for i in likeness.argsort(descending=True, stable=True).tolist():
        if bound is not None and likeness[i] < bound:
            verdicts[i] = OTHER
        elif shown is not None and any(float((shown[i] - other).abs().mean()) < SAME for other in taken):
            verdicts[i] = REPEATED
        elif verdicts.count(KEPT) == room:
            verdicts[i] = ENOUGH
        else:
            verdicts[i] = KEPT
            if shown is not None:
                taken.append(shown[i])
    return Sifted(likeness, verdicts, bound)


def thumbnails(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures ``[3, H, W]`` in [0, 1] as small ones ``[N, P]`` that are the same where they show the same."""
    return torch.stack([resize(picture, SIDE, SIDE).flatten() for picture in pictures])


def grow_sifted(encoder: ImageEncoder, originals: Dataset, made: Dataset, how: Sifting | None = None) -> tuple[Dataset, Sifted]:
    """The originals and, behind them, those pictures of ``made`` that show the same individual in the eyes of an image encoder, and what
    became of each. Raises ``ValueError`` for originals of which some were made themselves.
    """
    if originals.generated:
        raise ValueError(f"{originals.generated} of the originals were made by a model themselves: sift beside photos alone")
    seen, known = (embed_all(encoder, [picture * 2 - 1 for picture in data.pictures]) for data in (made, originals))
    sifted = sift(seen, known, how, thumbnails(made.pictures), thumbnails(originals.pictures))
    return grow(originals, made, sifted.kept), sifted


def sift_sheet(sifted: Sifted, pictures: Sequence[Tensor]) -> Image.Image:
    """The pictures ``[3, H, W]`` in [0, 1] that are kept and those that are not, the most alike first, with likeness and verdict."""
    order, strips = sifted.likeness.argsort(descending=True, stable=True).tolist(), []
    for title, own in (("kept", True), ("not kept", False)):
        which = [i for i in order if (sifted.verdicts[i] == KEPT) is own]
        if which:
            labels = [(f"{float(sifted.likeness[i]):.3f}", f"{i + 1}: {sifted.verdicts[i]}") for i in which]
            strips.append(Strip(f"{title} ({len(which)})", [pictures[i] * 2 - 1 for i in which], labels))
    return sheet(strips, "Sifted pictures", sifted.text())


def describe_rest(sifted: Sifted, names: Sequence[str], most: int = 20) -> list[str]:
    """A line for each of the first pictures that are not kept, by its name."""
    rest = [i for i, verdict in enumerate(sifted.verdicts) if verdict != KEPT]
    lines = [f"{brief(names[i])}: {sifted.verdicts[i]} (likeness {float(sifted.likeness[i]):.3f})" for i in rest[:most]]
    return lines + ([f"and {len(rest) - most} more"] if len(rest) > most else [])
