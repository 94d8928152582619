"""What a prompt of the Doodle world asks for: a scene that obeys it exactly, with a concept in the place of ``<TOK>``.

Rendered it is what a perfect method would paint, so its scores are the ceiling of a benchmark.
"""

import re
from dataclasses import replace

import numpy as np

from ...doodle.concepts import DoodleConcept
from ...doodle.figures import COLOURS, FIGURES, Look, individual, plain
from ...doodle.style import Style, common_style
from ...doodle.world import IN_PLACE, Scene, arrange

STYLED = {"an ink painting of": "ink", "a pencil drawing of": "drawing", "a drawing of": "drawing", "a painting of": "painting"}
KIND = re.compile(rf"(<TOK>|\b(?:({'|'.join(COLOURS)}) )?({'|'.join(FIGURES)})\b)")


def scene_of(prompt: str, concept: DoodleConcept, seed: int) -> Scene:
    """Return the scene that a prompt asks for. Raises ``ValueError`` for one that names nothing of this world."""
    rng = np.random.default_rng((seed, 131))
    place = next((p for p, words in IN_PLACE.items() if any(w in prompt for w in words)), None)
    style = concept.style or next((common_style(name) for words, name in STYLED.items() if prompt.startswith(words)), Style())
    named = [concept.look if m[1] == "<TOK>" else ordinary(m[3], m[2], rng) for m in KIND.finditer(prompt)]
    looks = [look for look in named if look is not None]  # a style has none
    if not looks:
        raise ValueError(f"{prompt!r} asks for nothing of the Doodle world: expected <TOK>, or one of {', '.join(FIGURES)}")
    things = arrange(looks, [look.kind for look in looks], rng)
    side = 1 if " on the right" in prompt else -1 if " on the left" in prompt else 0
    if side and len(things) == 1:
        half = rng.uniform(26, 34)
        things = (replace(things[0], x=64 + side * rng.uniform(26, 32), half=half, y=rng.uniform(98, 110) - 0.9 * half),)
    return Scene(things, place, style, int(rng.integers(2**31)))


def ordinary(kind: str, colour: str | None, rng: np.random.Generator) -> Look:
    """A thing in its colour, or any individual where none is named."""
    return plain(kind, COLOURS[colour]) if colour else individual(kind, rng)
