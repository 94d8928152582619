"""Scenes of several personal concepts side by side, for measuring: who stands where, and the texts of each place."""

from dataclasses import dataclass

import numpy as np

from ...doodle.concepts import CONCEPTS
from ...doodle.style import PLACES
from ...doodle.world import IN_PLACE, SIZE
from ...grammar import article

THINGS = tuple(name for name, concept in CONCEPTS.items() if concept.look)
ALIKE = (("dog", "dog2"), ("cat", "cat2"))
Box = tuple[float, float, float, float]  # left, top, right, bottom, as parts of the picture


@dataclass(frozen=True)
class Composition:
    """Concepts from left to right, each in its box; every box is about as large as the pictures that Doodle was made for."""

    names: tuple[str, ...]
    boxes: tuple[Box, ...]
    place: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        return SIZE * len(self.names), SIZE

    @property
    def plain(self) -> str:
        """The scene in words that the base model knows."""
        return f"{_listed([article(CONCEPTS[name].class_word) for name in self.names])} {self.place}"

    @property
    def handled(self) -> str:
        """The scene with every concept by its handle."""
        return f"{_listed([f'a <{name}>' for name in self.names])} {self.place}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The prompt of each box."""
        return tuple(f"a <{name}> {self.place}" for name in self.names)


def compositions(count: int, seed: int = 0) -> list[Composition]:
    """Scenes of two, three and four concepts in turn, the same for the same seed; in every second one, two are of one class."""
    return [_composition(np.random.default_rng((seed, 71, i)), 2 + i % 3, alike=i // 3 % 2 == 0) for i in range(count)]


def _composition(rng: np.random.Generator, count: int, alike: bool) -> Composition:
    names = list(ALIKE[rng.integers(len(ALIKE))]) if alike else []
    others = [n for n in THINGS if n not in names]
    while len(names) < count:
        names.append(others.pop(rng.integers(len(others))))
        others = [n for n in others if alike or CONCEPTS[n].class_word not in {CONCEPTS[m].class_word for m in names}]
    rng.shuffle(names)
    place = str(rng.choice(PLACES))
    gap, top, bottom = rng.uniform(0.0, 0.04), rng.uniform(0.0, 0.12), rng.uniform(0.94, 1.0)
    boxes = tuple(((i + gap) / count, top, (i + 1 - gap) / count, bottom) for i in range(count))
    return Composition(tuple(names), boxes, IN_PLACE[place][0])


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
