"""Canvases for contrast: cut-outs of concepts and of common things on white, with captions that say what stands where (CLIF).

There are four kinds: a whole concept alone (ours), beside a common thing (identity), a part of it beside a common thing (binding), and two
whole concepts (attendance). What has no mask is pasted as the picture that it is.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..grammar import article
from .crops import resize
from .dataset import EMPTY, Dataset

OPENINGS = ("a photo of {}", "a picture of {}", "{}")
SMALLEST = 0.55  # of its half of the canvas, or of all of it, that a cut-out fills on its longer side
PARTS = ("the top of {}", "the top of {}", "the bottom of {}", "the bottom of {}")  # of the four quarters of a cut-out, row by row


@dataclass(frozen=True)
class CutOut:
    """A cut-out is a picture ``[3, h, w]`` in [0, 1] with what of it shows ``[1, h, w]``; ``phrase`` says what it is: "a red dog"."""

    picture: Tensor
    shown: Tensor
    phrase: str


@dataclass(frozen=True)
class Canvas:
    """A canvas is a picture ``[3, S, S]`` in [-1, 1], its caption, and in ``about`` the words of the concepts in it; canvases of which
    ``what`` is the same show the same, whatever the wording.
    """

    picture: Tensor
    caption: str
    what: str
    about: tuple[str, ...]


@dataclass(frozen=True)
class Lesson:
    """A lesson is a concept whose words are to be told apart from others: its name, what kind of thing it is, and pictures of it."""

    name: str
    class_word: str
    data: Dataset


def cut_around(picture: Tensor, mask: Tensor | None, phrase: str) -> CutOut | None:
    """Cuts what a mask ``[1, H, W]`` covers out of a picture ``[3, H, W]``, all of it without a mask; ``None`` if it covers nothing."""
    shown = torch.ones_like(picture[:1]) if mask is None else mask
    covered = shown[0] >= EMPTY
    if not bool(covered.any()):
        return None
    rows, columns = (slice(int(at.min()), int(at.max()) + 1) for at in (covered.any(1).nonzero(), covered.any(0).nonzero()))
    return CutOut(picture[:, rows, columns], shown[:, rows, columns], phrase)


def cut_lesson(lesson: Lesson, words: Sequence[str]) -> list[CutOut]:
    """Cuts a concept out of all its pictures. Raises ``ValueError`` if no mask covers anything."""
    phrase = f"a {' '.join(words)}"
    found = [cut_around(p, m, phrase) for p, m in zip(lesson.data.pictures, lesson.data.masks, strict=True)]
    if not any(found):
        raise ValueError(f"the masks of <{lesson.name}> cover nothing, so nothing can be cut out: a mask is white where the concept is")
    return [cut for cut in found if cut is not None]


def cut_common(things: Mapping[str, Sequence[tuple[Tensor, Tensor | None]]]) -> list[CutOut]:
    """Cuts common things out of pictures ``[3, H, W]`` in [0, 1] with masks ``[1, H, W]`` or none, by what they are: "red dog"."""
    found = [cut_around(picture, mask, article(words)) for words, shown in things.items() for picture, mask in shown]
    return [cut for cut in found if cut is not None]


def cut_drawn(things: Sequence[Any]) -> list[CutOut]:
    """Cuts drawn things out of their pictures ``[H, W, 3]`` by masks ``[H, W]``, both uint8; the ``caption`` of each says what it is."""
    found = []
    for one in things:
        picture, mask = (torch.from_numpy(pixels.astype(np.float32) / 255) for pixels in (one.picture, one.mask))
        found += cut_common({one.caption: [(picture.permute(2, 0, 1), mask[None])]})
    return found


def part_of(cut: CutOut, number: int) -> CutOut:
    """Returns a quarter of a cut-out, of which there are four, row by row; the whole where nothing of it shows there."""
    height, width = cut.picture.shape[1:]
    rows = slice(0, (height + 1) // 2) if number < 2 else slice(height // 2, height)
    columns = slice(0, (width + 1) // 2) if number % 2 == 0 else slice(width // 2, width)
    own = cut_around(cut.picture[:, rows, columns], cut.shown[:, rows, columns], PARTS[number].format(cut.phrase))
    return own or cut


def paste(cuts: Sequence[CutOut], side: int, rng: random.Random) -> Tensor:
    """Pastes cut-outs on white from left to right, each at a random place and size in its share: ``[3, side, side]`` in [-1, 1]."""
    canvas, share = torch.ones(3, side, side), side // len(cuts)
    for number, cut in enumerate(cuts):
        height, width = cut.picture.shape[1:]
        scale = rng.uniform(SMALLEST, 1) * min(side / height, share / width)
        height, width = max(1, int(height * scale)), max(1, int(width * scale))
        top, left = rng.randint(0, side - height), number * share + rng.randint(0, share - width)
        picture, shown = resize(cut.picture, height, width), resize(cut.shown, height, width)
        place = canvas[:, top : top + height, left : left + width]
        place.copy_(shown * picture + (1 - shown) * place)
    return canvas * 2 - 1


def canvases_of(
    lessons: Sequence[Lesson], words: Mapping[str, Sequence[str]], common: Sequence[CutOut], count: int, side: int, seed: int
) -> list[Canvas]:
    """Draws canvases of all lessons, whose ``words`` are given by name. Raises what ``cut_lesson`` does."""
    cuts = {" ".join(words[lesson.name]): cut_lesson(fitted(lesson, side), words[lesson.name]) for lesson in lessons}
    return draw_canvases(cuts, common, count, side, random.Random(f"{seed}/canvases"))


def draw_canvases(
    concepts: Mapping[str, Sequence[CutOut]], common: Sequence[CutOut], count: int, side: int, rng: random.Random
) -> list[Canvas]:
    """Draws canvases of ``concepts``, cut-outs by words, in turn of every kind that these and the ``common`` cut-outs allow."""
    kinds = ["alone", *(["common", "part"] if common else []), *(["pair"] if len(concepts) > 1 else [])]
    return [draw_canvas(kinds[i % len(kinds)], concepts, common, side, rng) for i in range(count)]


def draw_canvas(kind: str, concepts: Mapping[str, Sequence[CutOut]], common: Sequence[CutOut], side: int, rng: random.Random) -> Canvas:
    """Draws one canvas of a kind: alone, common, part or pair."""
    about = rng.sample(sorted(concepts), 2 if kind == "pair" else 1)
    cuts = [rng.choice(concepts[words]) for words in about]
    if kind == "part":
        cuts = [part_of(cuts[0], rng.randrange(len(PARTS)))]
    if kind in ("common", "part"):
        cuts.insert(rng.randrange(2), rng.choice(common))
    said = " and ".join(f"{cut.phrase} on the {place}" for cut, place in zip(cuts, ("left", "right"), strict=True)) if len(cuts) > 1 else ""
    said = said or cuts[0].phrase
    return Canvas(paste(cuts, side, rng), rng.choice(OPENINGS).format(said), said, tuple(about))


def without_masks(lesson: Lesson) -> list[str]:
    """Returns a line if a lesson has pictures without masks: what is around the concept is pasted too."""
    bare = sum(mask is None for mask in lesson.data.masks)
    if not bare:
        return []
    return [f"<{lesson.name}>: {bare} of {len(lesson.data)} pictures have no mask, so their surroundings are pasted too; give masks"]


def fitted(lesson: Lesson, side: int) -> Lesson:
    """Returns the lesson with pictures that are no longer than ``side`` calls for: twice that."""
    pictures, masks = [], []
    for picture, mask in zip(lesson.data.pictures, lesson.data.masks, strict=True):
        scale = min(1.0, 2 * side / max(picture.shape[1:]))
        height, width = (max(1, round(length * scale)) for length in picture.shape[1:])
        pictures.append(resize(picture, height, width))
        masks.append(None if mask is None else resize(mask, height, width))
    return replace(lesson, data=replace(lesson.data, pictures=pictures, masks=masks))
