"""Photos for editing: two halves of a place of the Doodle world, of which everything is known."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...doodle.concepts import CONCEPTS
from ...doodle.figures import COLOURS, FIGURES, plain
from ...doodle.style import PLACES
from ...doodle.world import IN_PLACE, Scene, arrange, render
from ...grammar import article
from ...measure.report import from_pixels
from .compositions import THINGS

STYLED = tuple(name for name, concept in CONCEPTS.items() if concept.style)


@dataclass(frozen=True)
class RenderedPhoto:
    """A photo with a plain thing on the left and, on the right, nothing or a plain thing of the class of concept ``name``, of which ``mask
    [128, 256]`` says where it stands. Pictures ``[3, 128, 256]`` in [-1, 1].
    """

    name: str
    other: str
    where: str
    empty: Tensor
    filled: Tensor
    mask: Tensor

    @property
    def own(self) -> str:
        """What is to be painted, by its handle, and where."""
        return f"a <{self.name}> {self.where}"

    @property
    def word(self) -> str:
        """The same with the class word in the place of the concept."""
        return f"{article(CONCEPTS[self.name].class_word)} {self.where}"

    @property
    def whole(self) -> str:
        """A prompt for all of the photo, with the concept in it."""
        return f"{article(self.other)} on the left and a <{self.name}> on the right {self.where}"

    @property
    def plain(self) -> str:
        """The same in words that the base model knows."""
        return f"{article(self.other)} on the left and {article(CONCEPTS[self.name].class_word)} on the right {self.where}"


@dataclass(frozen=True)
class StylePhoto:
    """A photo ``picture [3, 128, 128]`` in [-1, 1] of a plain thing, to be restyled by the concept ``name``, and the same ``drawn`` in that
    style.
    """

    name: str
    thing: str
    where: str
    picture: Tensor
    drawn: Tensor

    @property
    def own(self) -> str:
        return f"a <{self.name}> of {article(self.thing)} {self.where}"

    @property
    def plain(self) -> str:
        """What the photo shows, without a word of its style."""
        return f"{article(self.thing)} {self.where}"


def photos(count: int, seed: int = 0) -> list[RenderedPhoto]:
    """Photos for the concepts that are things, in turn; the same for the same seed."""
    return [_photo(THINGS[i % len(THINGS)], np.random.default_rng((seed, 89, i))) for i in range(count)]


def style_photos(count: int, seed: int = 0) -> list[StylePhoto]:
    """Photos for the concepts that are styles, in turn; the same for the same seed."""
    return [_style_photo(STYLED[i % len(STYLED)], np.random.default_rng((seed, 97, i))) for i in range(count)]


def plain_words() -> list[str]:
    """Everything plain that a caption may name, "red dog" and so on."""
    return [f"{colour} {kind}" for kind in FIGURES for colour in COLOURS]


def _photo(name: str, rng: np.random.Generator) -> RenderedPhoto:
    kind = CONCEPTS[name].class_word
    place, backdrop = str(rng.choice(PLACES)), int(rng.integers(2**31))
    beside = str(rng.choice([other for other in FIGURES if other != kind]))
    colours = [str(colour) for colour in rng.choice(list(COLOURS), 2, replace=False)]
    left, _ = _half(beside, colours[0], place, backdrop, rng)
    right, shape = _half(kind, colours[1], place, backdrop, rng)
    nothing = render(Scene((), place, seed=backdrop))[0]
    empty, filled = (from_pixels(np.concatenate([left, half], 1)[None])[0] for half in (nothing, right))
    mask = torch.from_numpy(np.concatenate([np.zeros_like(shape), shape], 1)).float() / 255
    return RenderedPhoto(name, f"{colours[0]} {beside}", IN_PLACE[place][0], empty, filled, mask)


def _half(kind: str, colour: str, place: str, backdrop: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A plain thing in a place ``[128, 128, 3]`` uint8, and its mask ``[128, 128]`` uint8."""
    look = plain(kind, COLOURS[colour]).with_proportions(*rng.uniform(-0.8, 0.8, 3))
    picture, (mask,) = render(Scene(arrange([look], [kind], rng), place, seed=backdrop))
    return picture, mask


def _style_photo(name: str, rng: np.random.Generator) -> StylePhoto:
    place, kind, colour = (str(rng.choice(options)) for options in (PLACES, list(FIGURES), list(COLOURS)))
    backdrop, look = int(rng.integers(2**31)), plain(kind, COLOURS[colour]).with_proportions(*rng.uniform(-0.8, 0.8, 3))
    scene = Scene(arrange([look], [kind], rng), place, seed=backdrop)
    style = CONCEPTS[name].style
    assert style is not None
    picture, drawn = (from_pixels(render(shown)[0][None])[0] for shown in (scene, replace(scene, style=style)))
    return StylePhoto(name, f"{colour} {kind}", IN_PLACE[place][0], picture, drawn)
