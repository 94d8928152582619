"""The Doodle world: captioned scenes, drawn the same on every machine from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..grammar import article
from .draw import Pose
from .figures import COLOURS, FIGURES, Look, individual, plain
from .style import PLACES, STYLES, Style, apply_style, background, common_style

SIZE = 128


@dataclass(frozen=True)
class Thing:
    """One object in a scene: its look, the words a caption uses for it, and where it stands (pixels of 128)."""

    look: Look
    words: str
    x: float
    y: float
    half: float
    flip: bool = False
    tilt: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A scene is what a picture shows. ``seed`` fixes the incidental (clouds, windows, brush strokes)."""

    things: tuple[Thing, ...]
    place: str | None = None
    style: Style = field(default_factory=Style)
    seed: int = 0


def render(scene: Scene, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Returns the picture ``[size, size, 3]`` uint8 and one mask per thing ``[things, size, size]`` uint8 (0..255, what
    is visible: a thing in front hides those behind it).
    """
    rng = np.random.default_rng((scene.seed, 77))
    canvas = background(scene.place, size, rng)
    masks: list[np.ndarray] = []
    for thing in scene.things:
        parts = FIGURES[thing.look.kind](thing.look)
        pose = Pose(thing.x, thing.y, thing.half, thing.flip, thing.tilt)
        mask = canvas.draw(parts, pose, scene.style.ink, scene.style.line)
        masks = [(m.astype(np.uint16) * (255 - mask) // 255).astype(np.uint8) for m in masks] + [mask]
    stacked = np.stack(masks) if masks else np.zeros((0, size, size), np.uint8)
    return apply_style(canvas.pixels(), scene.style, rng), stacked


def arrange(looks: Sequence[Look], words: Sequence[str], rng: np.random.Generator) -> tuple[Thing, ...]:
    """Place up to three things side by side on the ground, left to right in the given order, varied a little."""
    n = len(looks)
    centres = {1: [64.0], 2: [34.0, 94.0], 3: [23.0, 64.0, 105.0]}[n]
    half = {1: rng.uniform(35, 46), 2: rng.uniform(25.5, 30), 3: rng.uniform(18.5, 20.5)}[n]
    loose = {1: 12.0, 2: 3.0, 3: 1.5}[n]
    things = []
    for look, phrase, centre in zip(looks, words, centres, strict=True):
        own = half * rng.uniform(0.93, 1.0)
        things.append(
            Thing(
                look,
                phrase,
                centre + rng.uniform(-loose, loose),
                rng.uniform(98, 110) - 0.9 * own,
                own,
                bool(rng.random() < 0.5),
                float(rng.uniform(-0.06, 0.06)),
            )
        )
    return tuple(things)


def phrase(look: Look, colour: str | None, rng: np.random.Generator) -> str:
    """The words for a thing, without article: "red dog", "dog with a hat", "dog with spots"."""
    if colour is not None:
        return f"{colour} {look.kind}"
    extras = []
    if look.marking in ("spots", "stripes"):
        extras.append(look.marking)
    if look.accessory != "none":
        extras.append(f"a {look.accessory}")
    if extras and rng.random() < 0.5:
        return f"{look.kind} with {extras[rng.integers(len(extras))]}"
    return look.kind


def random_scene(seed: int) -> Scene:
    """A scene of the world the base model learns: plain things in named colours, and unnamed individuals."""
    rng = np.random.default_rng((seed, 11))
    n = int(rng.choice([1, 2, 3], p=[0.46, 0.44, 0.10]))
    kinds = rng.choice(list(FIGURES), n, replace=False)
    looks, words = [], []
    for kind in kinds:
        if rng.random() < 0.72:
            colour = str(rng.choice(list(COLOURS)))
            look = plain(str(kind), COLOURS[colour]).with_proportions(*rng.uniform(-0.8, 0.8, 3))
        else:
            colour, look = None, individual(str(kind), rng)
        looks.append(look)
        words.append(phrase(look, colour, rng))
    things = arrange(looks, words, rng)
    if n == 1 and rng.random() < 0.2:
        side = rng.choice([-1, 1])
        half = rng.uniform(26, 34)
        things = (replace(things[0], x=64 + side * rng.uniform(26, 32), half=half, y=rng.uniform(98, 110) - 0.9 * half),)
    place = str(rng.choice(PLACES)) if rng.random() < 0.82 else None
    style = str(rng.choice(STYLES, p=[0.82, 0.06, 0.06, 0.06]))
    if style == "ink":
        things = tuple(replace(t, words=t.look.kind) for t in things)
    return Scene(things, place, common_style(style), int(rng.integers(2**31)))


IN_PLACE = {
    "beach": ("on the beach", "at the beach", "on a sunny beach"),
    "snow": ("in the snow", "on snow", "in snow"),
    "night": ("at night", "in the night", "under the moon at night"),
    "forest": ("in the forest", "in a forest", "in the woods of a forest"),
    "street": ("on the street", "on a street", "in a street"),
    "meadow": ("in a meadow", "on the meadow", "in a green meadow"),
}
IN_STYLE = {
    "flat": ("{}", "{}", "{}", "a picture of {}", "a photo of {}", "{}, flat vector art"),
    "painting": ("a painting of {}", "an oil painting of {}", "{}, painting"),
    "drawing": ("a drawing of {}", "a pencil drawing of {}", "{}, drawing"),
    "ink": ("an ink painting of {}", "{}, ink", "an ink sketch of {}"),
}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the scene in varied wording."""
    names = [article(t.words) for t in scene.things]
    place = str(rng.choice(IN_PLACE[scene.place])) if scene.place else ""
    if len(names) == 1:
        x = scene.things[0].x
        side = "on the left" if x < 44 else "on the right" if x > 84 else ""
        subject = f"{names[0]} {side}".strip()
    elif len(names) == 2:
        a, b = names
        subject = str(
            rng.choice(
                [
                    f"{a} on the left and {b} on the right",
                    f"{b} on the right and {a} on the left",
                    f"{a} and {b}" if rng.random() < 0.5 else f"{b} and {a}",
                    f"{a} next to {b}" if rng.random() < 0.5 else f"{b} next to {a}",
                ],
                p=[0.4, 0.2, 0.2, 0.2],
            )
        )
    else:
        a, b, c = names
        subject = str(rng.choice([f"{a} on the left, {b} in the middle and {c} on the right", f"{a}, {b} and {c}"], p=[0.7, 0.3]))
    text = str(rng.choice(IN_STYLE[scene.style.name])).format(f"{subject} {place}".strip())
    if rng.random() < 0.08 and place:
        text = f"{place}, {str(rng.choice(IN_STYLE[scene.style.name])).format(subject)}"
    return text
