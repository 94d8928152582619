"""What a prompt of the Doodle world asks for, drawn: pictures that obey it exactly, with a concept in the place of ``<TOK>``.

They are what a perfect method would paint, so their scores are the ceiling of a benchmark.
"""

import re
from dataclasses import replace

import numpy as np

from .concepts import DoodleConcept
from .figures import COLOURS, FIGURES, Look, individual, plain
from .style import Style, common_style
from .world import IN_PLACE, Scene, arrange, render

STYLED = {"an ink painting of": "ink", "a pencil drawing of": "drawing", "a drawing of": "drawing", "a painting of": "painting"}
KIND = re.compile(rf"(<TOK>|\b(?:({'|'.join(COLOURS)}) )?({'|'.join(FIGURES)})\b)")


def asked(prompt: str, concept: DoodleConcept, seed: int) -> np.ndarray:
    """A picture ``[128, 128, 3]`` uint8 of a prompt. Raises ``ValueError`` for one that names nothing of this world."""
    rng = np.random.default_rng((seed, 131))
    place = next((p for p, words in IN_PLACE.items() if any(w in prompt for w in words)), None)
    style = concept.style or next((common_style(name) for words, name in STYLED.items() if prompt.startswith(words)), Style())
    looks = [concept.look if m[1] == "<TOK>" else look(m[3], m[2], rng) for m in KIND.finditer(prompt) if concept.look or m[1] != "<TOK>"]
    things = [thing for thing in looks if thing is not None]
    if not things:
        raise ValueError(f"{prompt!r} asks for nothing of the Doodle world: expected <TOK>, or one of {', '.join(FIGURES)}")
    stands = arrange(things, [thing.kind for thing in things], rng)
    side = 1 if " on the right" in prompt else -1 if " on the left" in prompt else 0
    if side and len(stands) == 1:
        half = rng.uniform(26, 34)
        stands = (replace(stands[0], x=64 + side * rng.uniform(26, 32), half=half, y=rng.uniform(98, 110) - 0.9 * half),)
    return render(Scene(stands, place, style, int(rng.integers(2**31))))[0]


def look(kind: str, colour: str | None, rng: np.random.Generator) -> Look:
    """A thing in its colour, or any individual where none is named."""
    return plain(kind, COLOURS[colour]) if colour else individual(kind, rng)
