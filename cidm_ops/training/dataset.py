"""The pictures of one concept as the trainer sees them, from a folder, from a node graph or from Doodle."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.family import Family
from ..models.sd import SD1
from .captions import constant_words
from .config import FITS
from .crops import fit, resize

EMPTY, WHOLE = 0.05, 0.5  # a mask with nothing lighter covers nothing, one with nothing darker everything
MOST = 1_000_000  # pictures in one pass: its order is laid out


@dataclass
class Dataset:
    """Pictures ``[3, H, W]`` in [0, 1] of any shape, a caption and perhaps a mask ``[1, H, W]`` for each, and how they are fitted.

    ``repeats`` counts how often a picture comes up in one pass, ``warnings`` what was amiss where they were read, ``generated`` how many
    of the pictures, the last ones, were made by a model. Raises ``ValueError``
    for no pictures, a wrong number of captions or a mask of another size. ``size`` 0 stands for the size of the base that learns from it.
    """

    pictures: Sequence[Tensor]
    captions: Sequence[str]
    masks: Sequence[Tensor | None] = ()
    names: Sequence[str] = ()
    repeats: Sequence[int] = ()
    size: int = 0
    fit: str = "as_given"
    flip: bool = False
    warnings: Sequence[str] = ()
    generated: int = 0

    def __post_init__(self) -> None:
        count = len(self.pictures)
        self.masks = self.masks or [None] * count
        self.names = self.names or [f"picture {i + 1}" for i in range(count)]
        self.repeats = self.repeats or [1] * count
        if count == 0:
            raise ValueError("no pictures to learn from: give 4 to 7 of them")
        if len(self.captions) != count:
            raise ValueError(f"{len(self.captions)} captions for {count} pictures: give one caption per picture, or none at all")
        if len(self.masks) != count:
            raise ValueError(f"{len(self.masks)} masks for {count} pictures: give one mask per picture, or none at all")
        for name, picture, mask in zip(self.names, self.pictures, self.masks, strict=True):
            if mask is not None and mask.shape[1:] != picture.shape[1:]:
                raise ValueError(f"{name}: its mask is {_size(mask)} and the picture {_size(picture)}: make the mask of the same size")
        if not 0 < sum(self.repeats) <= MOST or min(self.repeats) < 0:
            raise ValueError(f"the pictures come up {sum(self.repeats)} times in one pass: expected 1 to {MOST} times")
        if self.fit not in FITS:
            raise ValueError(f"fit {self.fit!r}: expected one of {', '.join(FITS)}")

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def side(self) -> int:
        """The training size in pixels; as long as no base is known that of Stable Diffusion 1."""
        return self.size or SD1.size

    def sized_for(self, family: Family) -> "Dataset":
        """Returns the dataset for bases of a family: where it has no size, it has theirs."""
        return self if self.size or self.fit == "as_given" else replace(self, size=family.size)

    @property
    def fixed(self) -> bool:
        """Whether a picture looks the same at every draw, but for flipping: then its latent can be kept."""
        return self.fit != "random"

    def draw(self, index: int, flipped: bool, rng: random.Random, cell: int = SD1.cell) -> tuple[Tensor, Tensor | None]:
        """Picture ``[3, h, w]`` in [-1, 1] and where to learn ``[1, h, w]`` in [0, 1], all of it if ``None``; ``cell`` is the model's."""
        picture, mask = fit(self.pictures[index], self.masks[index], self.fit, self.side, rng, cell)
        if flipped:
            picture, mask = picture.flip(-1), None if mask is None else mask.flip(-1)
        return (picture * 2 - 1).contiguous(), mask

    def order(self, rng: random.Random) -> list[int]:
        """One pass over the pictures, shuffled."""
        indices = [i for i, n in enumerate(self.repeats) for _ in range(n)]
        rng.shuffle(indices)
        return indices

    def remarks(self, class_word: str) -> list[str]:
        """Say what a person should know before training: words in every caption, equal pictures, small ones, idle masks."""
        out = list(self.warnings)
        if words := constant_words(self.captions, class_word):
            out.append(f"every caption says {', '.join(map(repr, words))}: the concept will not carry that by itself; leave it out of some")
        thumbs = torch.stack([resize(p, 8, 8).expand(3, 8, 8) for p in self.pictures]).flatten(1)
        if not all(mask is not None and bool((mask == 1).all()) for mask in self.masks):  # a node that finds no masks gives ones for all
            idle = [name for name, mask in zip(self.names, self.masks, strict=True) if mask is not None and mask.min() > WHOLE]
            out += [f"{', '.join(idle)}: the mask covers everything, as if there were none"] if idle else []
        for i, name in enumerate(self.names):
            for j in ((thumbs[:i] - thumbs[i]).abs().mean(1) < 0.004).nonzero()[:, 0].tolist():
                out.append(f"{name} and {self.names[j]} are the same picture")
            if self.fit != "as_given" and min(self.pictures[i].shape[1:]) < self.size // 2:  # not said of a size that is open
                out.append(f"{name} is {_size(self.pictures[i])}: much smaller than the training size of {self.size}, it will be blurred")
            mask, seen = self.masks[i], self.seen(i)
            if mask is not None and mask.max() < EMPTY:
                lightest = f" (its lightest value is {round(255 * float(mask.max()))} of 255)" if mask.max() else ""
                out.append(f"{name}: its mask covers nothing{lightest}, so nothing is learned from it: it is white where the concept is")
            elif seen is not None and seen.max() < EMPTY:
                out.append(f"{name}: its mask covers nothing of what fit {self.fit!r} takes of it, so nothing is learned from it")
        return out

    def unsuited_size(self, family: Family) -> list[str]:
        """Returns a line if the pictures are trained at a size that is far from that of the bases of a family."""
        sides = [p.shape[1:].numel() ** 0.5 for p in self.pictures] if self.fit == "as_given" else [self.side]
        if not sides or all(family.size / 2 < side < family.size * 2 for side in sides):
            return []
        shown = _size(self.pictures[0]) if self.fit == "as_given" else f"{self.side} x {self.side}"
        return [f"the pictures are {shown} pixels and {family.title} was made for {family.size} x {family.size}: take them at that size"]

    def seen(self, index: int) -> Tensor | None:
        """Return where a picture is learned ``[1, h, w]``, after cropping where that is the same at every draw; everywhere if ``None``."""
        mask = self.masks[index]
        return mask if mask is None or not self.fixed else fit(mask, mask, self.fit, self.side, random.Random(0))[1]

    def check_masks(self) -> None:
        """Raises ``ValueError`` if the masks of all pictures are empty: nothing would be learned."""
        areas = [self.seen(i) for i in range(len(self))]
        if all(area is not None and area.max() < EMPTY for area in areas):
            raise ValueError(
                f"the masks of all {len(self)} pictures cover nothing, so nothing would be learned: a mask is white where the concept is, "
                "and what is transparent in a picture is masked out; mend the masks, or leave them out"
            )


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]}"


def from_images(
    images: Tensor | Sequence[Tensor], captions: Sequence[str], masks: Tensor | Sequence[Tensor] | None = None, **how
) -> Dataset:
    """A host's IMAGE batch or list, each ``[(N,) H, W, C]`` in [0, 1], captions and masks ``[(N,) H, W]``. A fourth channel is a mask.

    No caption at all stands for the class word alone; one mask for many pictures is an error.
    """
    flat = [p for image in images for p in (image if image.ndim == 4 else image[None])]
    shown = [p[..., :3].movedim(-1, 0).float().clone() for p in flat]
    if masks is not None:
        areas: list[Tensor | None] = [m[None].float().clone() for mask in masks for m in (mask if mask.ndim == 3 else mask[None])]
    else:
        areas = [p[None, ..., 3].float().clone() if p.shape[-1] == 4 else None for p in flat]
    return Dataset(shown, list(captions) or [""] * len(shown), areas, **how)


def grow(originals: Dataset, made: Dataset, which: Sequence[int]) -> Dataset:
    """Returns the originals with some of the pictures that a model made behind them, each of which comes up once; the originals come up so
    often that they are at least half of every pass. Without any they come up as ever.
    """
    often = max(1, -(-len(which) // sum(originals.repeats)))
    return replace(
        originals,
        pictures=[*originals.pictures, *(made.pictures[i] for i in which)],
        captions=[*originals.captions, *(made.captions[i] for i in which)],
        masks=[*originals.masks, *(made.masks[i] for i in which)],
        names=[*originals.names, *(made.names[i] for i in which)],
        repeats=[times * often for times in originals.repeats] + [1] * len(which),
        generated=len(which),
    )
