"""Places behind a scene and the styles a scene is painted in."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .draw import OUTLINE, RGB, Canvas, Part, Pose, box, ellipse, limb, polygon, shade

PLACES = ("beach", "snow", "night", "forest", "street", "meadow")
STYLES = ("flat", "painting", "drawing", "ink")


@dataclass(frozen=True)
class Style:
    """How a finished scene is turned into a picture.

    ``wash`` is how much of the scene's own colour stays (1 all, 0 none), ``paper`` and ``ink`` the two ends of the
    rest, ``strokes`` the depth of brush strokes, ``grid`` a line colour for ruled paper, ``frame`` a border colour and
    ``seal`` a stamp in the corner.
    """

    name: str = "flat"
    wash: float = 1.0
    paper: RGB = (255, 255, 255)
    ink: RGB = OUTLINE
    line: float = 1.1
    strokes: float = 0.0
    grid: RGB | None = None
    frame: RGB | None = None
    seal: RGB | None = None


def common_style(name: str) -> Style:
    """Return what the plain words "painting", "drawing" and "ink" mean in this world."""
    return {
        "flat": Style(),
        "painting": Style("painting", 0.8, (232, 202, 150), (70, 44, 30), 0.6, 9.0, None, (150, 104, 56)),
        "drawing": Style("drawing", 0.3, (254, 254, 252), (70, 70, 78), 1.3),
        "ink": Style("ink", 0.0, (240, 234, 220), (28, 26, 30), 1.6),
    }[name]


def background(place: str | None, size: int, rng: np.random.Generator) -> Canvas:
    """A canvas with the empty place on it; ``None`` is a wall and floor of one soft colour."""
    horizon = rng.uniform(0.5, 0.62)
    of_place: dict[str | None, tuple[RGB, RGB]] = {
        "beach": ((150, 214, 250), (244, 220, 160)),
        "snow": ((206, 222, 236), (248, 250, 254)),
        "night": ((26, 30, 78), (38, 62, 64)),
        "forest": ((122, 172, 118), (92, 122, 62)),
        "street": ((222, 206, 190), (128, 128, 136)),
        "meadow": ((164, 222, 252), (126, 204, 92)),
        None: ((244, 236, 222), (226, 212, 194)),
    }
    sky, ground = of_place[place]
    if place is None:
        hue = rng.uniform(-12, 12, 3)
        sky, ground = (tuple(int(np.clip(c + h, 0, 255)) for c, h in zip(col, hue, strict=True)) for col in (sky, ground))
    rows = (np.arange(size) + 0.5) / size
    column = np.where((rows < horizon)[:, None], np.asarray(sky), np.asarray(ground)).astype(np.uint8)
    canvas = Canvas(size, np.ascontiguousarray(np.broadcast_to(column[:, None], (size, size, 3))))
    h = horizon * 128
    for part, x, y, half in _scenery(place, h, rng):
        canvas.draw([part], Pose(x, y, half), OUTLINE, 0)
    return canvas


Piece = tuple[Part, float, float, float]  # a part with its centre and scale


def _scenery(place: str | None, h: float, rng: np.random.Generator) -> Iterator[Piece]:
    """Parts of the place with their centre and scale; ``h`` is the horizon in pixels of a 128 px picture."""
    side = rng.choice([-1, 1])
    at = 64 + side * rng.uniform(34, 46)
    return SCENERY[place](h, at, rng) if place in SCENERY else _bare(h)


def _beach(h: float, at: float, rng: np.random.Generator) -> Iterator[Piece]:
    yield box(0, 0, 1, 1, (52, 148, 214), 0.01, False), 64, h - 8, 0
    yield polygon([(-1, -0.14), (1, -0.14), (1, 0.0), (-1, 0.0)], (52, 150, 216), False), 64, h, 70
    yield ellipse(0, 0, 1, 1, (255, 226, 92), inked=False), at, 20, 11


def _snow(h: float, at: float, rng: np.random.Generator) -> Iterator[Piece]:
    for x in rng.uniform(4, 124, 16):
        yield ellipse(0, 0, 1, 1, (255, 255, 255), inked=False), x, rng.uniform(4, 0.95 * h), rng.uniform(1.6, 2.8)
    yield ellipse(0, 0, 1, 0.4, (236, 242, 250), inked=False), at, h + 4, 40


def _night(h: float, at: float, rng: np.random.Generator) -> Iterator[Piece]:
    for x in rng.uniform(4, 124, 11):
        yield ellipse(0, 0, 1, 1, (255, 246, 190), inked=False), x, rng.uniform(4, 0.85 * h), rng.uniform(1.0, 1.8)
    yield ellipse(0, 0, 1, 1, (250, 240, 190), inked=False), at, 20, 10
    yield ellipse(0, 0, 1, 1, (26, 30, 78), inked=False), at + 5, 17, 8.5


def _forest(h: float, at: float, rng: np.random.Generator) -> Iterator[Piece]:
    for x in np.arange(6, 128, 20) + rng.uniform(-4, 4, 7)[: len(np.arange(6, 128, 20))]:
        yield polygon([(-0.09, -1), (0.09, -1), (0.12, 1), (-0.12, 1)], (92, 68, 46), False), x, h / 2 + 4, h / 2 + 6
    for x in np.arange(0, 140, 16) + rng.uniform(-4, 4, 9):
        yield ellipse(0, 0, 1, 0.8, shade((44, 104, 54), rng.uniform(0.85, 1.15)), inked=False), x, rng.uniform(4, 14), 15


def _street(h: float, at: float, rng: np.random.Generator) -> Iterator[Piece]:
    for i, x in enumerate(np.arange(14.0, 128, 33)):
        tall = rng.uniform(0.55, 0.9) * h
        wall = [(196, 150, 128), (172, 164, 182), (206, 182, 140)][(i + rng.integers(3)) % 3]
        yield polygon([(-1, 0), (-1, -tall / 14), (1, -tall / 14), (1, 0)], wall, False), x, h, 14
        for row in range(2):
            for u in (-0.45, 0.45):
                yield box(0, 0, 1, 1.2, (250, 236, 170), 0.1, False), x + u * 14, h - tall + 9 + 13 * row, 3
    for x in np.arange(10.0, 128, 27):
        yield box(0, 0, 1, 0.2, (242, 240, 232), 0.02, False), x, h + 0.62 * (128 - h), 8


def _meadow(h: float, at: float, rng: np.random.Generator) -> Iterator[Piece]:
    yield ellipse(0, 0, 1, 0.42, (104, 184, 80), inked=False), at, h + 4, 44
    cloud = 64 - np.sign(at - 64) * rng.uniform(20, 44)
    for dx, r in ((-9, 7), (0, 10), (9, 7)):
        yield ellipse(0, 0, 1, 0.75, (255, 255, 255), inked=False), cloud + dx, 20, r
    for x in rng.uniform(4, 124, 12):
        colour = [(252, 120, 150), (255, 250, 240), (252, 226, 90)][rng.integers(3)]
        yield ellipse(0, 0, 1, 1, colour, inked=False), x, rng.uniform(h + 10, 124), 2.0


def _bare(h: float) -> Iterator[Piece]:
    yield limb([(-1, 0), (1, 0)], 0.02, (206, 190, 172), False)[0], 64, h, 70


SCENERY = {"beach": _beach, "snow": _snow, "night": _night, "forest": _forest, "street": _street, "meadow": _meadow}


def apply_style(picture: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Turn a rendered scene ``[S, S, 3]`` uint8 into its style; same shape and type."""
    if style.name == "flat" and style == Style():
        return picture
    size = len(picture)
    unit = 128 / size
    y, x = np.mgrid[:size, :size] * unit
    image: np.ndarray = picture.astype(np.float32)
    if style.strokes:
        phase = rng.uniform(0, 2 * np.pi, 2)
        sway = 1.3 * np.stack([np.sin(y / 5 + phase[0]), np.sin(x / 6 + phase[1])]) / unit
        rows, cols = (np.clip(np.round(g / unit + d), 0, size - 1).astype(int) for g, d in zip((y, x), sway[::-1], strict=True))
        image = image[rows, cols]
        image += style.strokes * np.sin((x + 1.6 * y) / 2.4 + 2 * np.sin(y / 11 + phase[0]))[..., None]
    luma = (image @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None] / 255
    paper, ink = (np.asarray(c, dtype=np.float32) for c in (style.paper, style.ink))
    bright = np.clip((luma - 0.14) * 1.45, 0, 1) ** (0.7 if style.wash < 0.5 else 1.0)
    image = style.wash * image + (1 - style.wash) * (ink + (paper - ink) * bright)
    if style.grid is not None:
        lines = ((x % 12 < 1.2) | (y % 12 < 1.2))[..., None]
        image = np.where(lines, 0.45 * image + 0.55 * np.asarray(style.grid), image)
    if style.frame is not None:
        border = (np.minimum(np.minimum(x, y), np.minimum(127 - x, 127 - y)) < 6)[..., None]
        image = np.where(border, np.asarray(style.frame), image)
    if style.seal is not None:
        stamp = ((np.abs(x - 112) < 8) & (np.abs(y - 112) < 8) & ~((np.abs(x - 112) < 4) & (np.abs(y - 112) < 4)))[..., None]
        image = np.where(stamp, np.asarray(style.seal), image)
    return np.clip(image, 0, 255).astype(np.uint8)
