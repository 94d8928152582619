"""Personal concepts of the Doodle world: ten fixed ones that mirror the paper's ten tasks, and any other from a seed."""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from ..grammar import article
from .figures import COLOURS, FIGURES, UNNAMED, WHITE, Look, individual, plain
from .style import PLACES, Style
from .world import IN_PLACE, Scene, arrange, render

TEAL, MAGENTA, LIME, SNOW, COAL, SKY, SAND, WINE = UNNAMED


@dataclass(frozen=True)
class DoodleConcept:
    """Somebody's own thing (a ``look``) or way of painting (a ``style``), with the class word captions use for it."""

    name: str
    class_word: str
    look: Look | None = None
    style: Style | None = None

    @property
    def kind(self) -> str:
        return "thing" if self.look else "style"


@dataclass(frozen=True)
class Example:
    """A picture ``[S, S, 3]`` uint8, the mask ``[S, S]`` uint8 of the concept in it, and a caption with the class word."""

    picture: np.ndarray
    mask: np.ndarray
    caption: str


CONCEPTS: dict[str, DoodleConcept] = {
    c.name: c
    for c in (
        DoodleConcept("dog", "dog", Look("dog", SAND, WINE, "patch", SNOW, "scarf", TEAL, (0.9, 0.6, -0.4))),
        DoodleConcept(
            "duck", "duck", Look("duck", COLOURS["yellow"], MAGENTA, "stripes", COLOURS["purple"], "hat", COLOURS["green"], (0.7, 0.2, 0.8))
        ),
        DoodleConcept("cat", "cat", Look("cat", COAL, COLOURS["pink"], "patch", SNOW, "flower", COLOURS["orange"], (0.8, 0.9, -0.6))),
        DoodleConcept("backpack", "backpack", Look("backpack", TEAL, MAGENTA, "spots", COLOURS["yellow"], "none", WHITE, (0.5, 0.4, 0.6))),
        DoodleConcept("bear", "teddy bear", Look("teddy bear", LIME, SKY, "none", WHITE, "star", COLOURS["red"], (0.9, 0.5, 0.4))),
        DoodleConcept(
            "painting", "painting", style=Style("painting", 0.55, (250, 214, 120), (20, 60, 110), 0.6, 6.0, None, (206, 170, 40))
        ),
        DoodleConcept("dog2", "dog", Look("dog", SNOW, COAL, "spots", COAL, "hat", COLOURS["red"], (-0.6, -0.5, 0.6))),
        DoodleConcept("drawing", "drawing", style=Style("drawing", 0.12, (246, 250, 255), (30, 60, 170), 1.3, 0.0, (150, 190, 240))),
        DoodleConcept(
            "cat2", "cat", Look("cat", COLOURS["orange"], SNOW, "stripes", COLOURS["brown"], "scarf", COLOURS["blue"], (-0.5, -0.4, 0.9))
        ),
        DoodleConcept("ink", "ink painting", style=Style("ink", 0.0, (240, 214, 190), (84, 16, 22), 1.6, 0.0, None, None, (190, 30, 30))),
    )
}


def instance(kind: str, seed: int) -> DoodleConcept:
    """Another individual of a class, the same for the same seed."""
    return DoodleConcept(f"{kind.split()[-1]}-{seed}", kind, individual(kind, np.random.default_rng((seed, 23))))


def examples(concept: DoodleConcept, count: int, seed: int = 0) -> list[Example]:
    """Renderings of a concept in varied places and poses. Another ``seed`` gives held-out ones."""
    rng = np.random.default_rng((seed, crc32(concept.name.encode())))
    places = [str(p) for p in rng.permutation(PLACES)]
    return [_example(concept, places[i % len(places)], rng) for i in range(count)]


def common_things(count: int, seed: int = 0) -> list[Example]:
    """Renderings of plain things, one of each class in turn, in colours that captions name; the caption is the thing alone: "red dog"."""
    rng, found = np.random.default_rng((seed, 83)), []
    for number in range(count):
        kind, colour = list(FIGURES)[number % len(FIGURES)], str(rng.choice(list(COLOURS)))
        look = plain(kind, COLOURS[colour]).with_proportions(*rng.uniform(-0.8, 0.8, 3))
        scene = Scene(arrange([look], [f"{colour} {kind}"], rng), None, seed=int(rng.integers(2**31)))
        picture, masks = render(scene)
        found.append(Example(picture, masks[0], f"{colour} {kind}"))
    return found


def _example(concept: DoodleConcept, place: str, rng: np.random.Generator) -> Example:
    if concept.look is not None:
        things = arrange([concept.look], [concept.class_word], rng)
        scene = Scene(things, place, seed=int(rng.integers(2**31)))
        picture, masks = render(scene)
        return Example(picture, masks[0], f"{concept.class_word} {rng.choice(IN_PLACE[place])}")
    assert concept.style is not None
    kind, colour = str(rng.choice(list(FIGURES))), str(rng.choice(list(COLOURS)))
    things = arrange([plain(kind, COLOURS[colour])], [f"{colour} {kind}"], rng)
    picture, _ = render(Scene(things, place, concept.style, int(rng.integers(2**31))))
    text = f"{concept.class_word} of {article(things[0].words)} {rng.choice(IN_PLACE[place])}"
    return Example(picture, np.full(picture.shape[:2], 255, np.uint8), text)
