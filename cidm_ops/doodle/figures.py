"""The ten classes of the Doodle world: what each one looks like, given its look."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .draw import OUTLINE, RGB, Part, box, ellipse, limb, polygon, shade

WHITE: RGB = (250, 248, 244)
COLOURS: dict[str, RGB] = {
    "red": (214, 44, 44),
    "orange": (250, 138, 22),
    "yellow": (250, 216, 44),
    "green": (58, 168, 68),
    "blue": (44, 98, 216),
    "purple": (138, 62, 190),
    "pink": (252, 146, 188),
    "brown": (122, 74, 40),
}
# Colours that no caption names: only instances wear them.
UNNAMED: tuple[RGB, ...] = (
    (24, 158, 160),
    (206, 36, 130),
    (150, 206, 40),
    (250, 248, 244),
    (60, 60, 72),
    (108, 190, 240),
    (224, 178, 122),
    (120, 20, 50),
)
MARKINGS = ("none", "spots", "stripes", "patch")
ACCESSORIES = ("none", "hat", "scarf", "flower", "star")


@dataclass(frozen=True)
class Look:
    """Everything that makes one individual: colours, markings, accessory and three proportions in [-1, 1]."""

    kind: str
    body: RGB
    accent: RGB
    marking: str = "none"
    marking_colour: RGB = WHITE
    accessory: str = "none"
    accessory_colour: RGB = WHITE
    proportions: tuple[float, ...] = (0.0, 0.0, 0.0)

    def with_proportions(self, *values: float) -> "Look":
        return replace(self, proportions=tuple(float(v) for v in values))


def _eye(x: float, y: float, r: float = 0.07) -> list[Part]:
    return [ellipse(x, y, r, r * 1.15, OUTLINE, inked=False), ellipse(x + r * 0.3, y - r * 0.4, r * 0.35, r * 0.35, WHITE, inked=False)]


def _marks(look: Look, x: float, y: float, rx: float, ry: float) -> list[Part]:
    """Markings inside the ellipse ``rx, ry`` at ``x, y``."""
    c = look.marking_colour
    if look.marking == "spots":
        at = [(-0.5, -0.1), (0.05, -0.45), (0.5, 0.05), (-0.05, 0.4)]
        return [ellipse(x + u * rx, y + v * ry, 0.2 * min(rx, ry) + 0.03, 0.2 * min(rx, ry) + 0.03, c, inked=False) for u, v in at]
    if look.marking == "stripes":
        half = [0.62, 0.8, 0.62]
        at_x = [-0.5, 0.0, 0.5]
        return [
            p
            for u, h in zip(at_x, half, strict=True)
            for p in limb([(x + u * rx, y - h * ry), (x + u * rx, y + h * ry * 0.8)], 0.2 * rx, c, inked=False)
        ]
    if look.marking == "patch":
        return [ellipse(x - 0.15 * rx, y + 0.05 * ry, 0.5 * rx, 0.58 * ry, c, 0.3, inked=False)]
    return []


def _wear(look: Look, head: tuple[float, float], neck: tuple[float, float], chest: tuple[float, float], size: float) -> list[Part]:
    """The accessory: a hat on the head, a scarf at the neck, a flower or star on the chest."""
    c = look.accessory_colour
    if look.accessory == "hat":
        x, y = head
        return [
            box(x, y - 0.26 * size, 0.28 * size, 0.26 * size, c, 0.05),
            box(x, y - 0.02 * size, 0.5 * size, 0.08 * size, shade(c, 0.8), 0.06),
        ]
    if look.accessory == "scarf":
        x, y = neck
        return [
            box(x, y, 0.4 * size, 0.11 * size, c, 0.1),
            box(x + 0.2 * size, y + 0.25 * size, 0.1 * size, 0.26 * size, shade(c, 0.85), 0.06),
        ]
    if look.accessory == "flower":
        x, y = chest
        petals = [
            ellipse(x + 0.15 * size * np.cos(a), y + 0.15 * size * np.sin(a), 0.13 * size, 0.13 * size, c, inked=False)
            for a in np.arange(5) * 2 * np.pi / 5
        ]
        return [*petals, ellipse(x, y, 0.1 * size, 0.1 * size, (250, 216, 44), inked=False)]
    if look.accessory == "star":
        x, y = chest
        a = np.arange(10) * np.pi / 5 - np.pi / 2
        r = np.where(np.arange(10) % 2, 0.13, 0.3) * size
        return [polygon([(x + q * np.cos(b), y + q * np.sin(b)) for q, b in zip(r, a, strict=True)], c, inked=False)]
    return []


def _dog(look: Look) -> list[Part]:
    ear, tail, leg = look.proportions
    b, far = look.body, shade(look.body, 0.78)
    foot = 0.8 + 0.12 * leg
    wag = (-0.86 - 0.08 * tail, -0.28 - 0.25 * tail)
    return [
        *limb([(-0.52, 0.15), wag], 0.15, b),
        *limb([(-0.3, 0.35), (-0.3, foot)], 0.17, far),
        *limb([(0.36, 0.35), (0.36, foot)], 0.17, far),
        *limb([(-0.48, 0.35), (-0.48, foot + 0.06)], 0.19, b),
        *limb([(0.18, 0.35), (0.18, foot + 0.06)], 0.19, b),
        ellipse(-0.14, 0.22, 0.58, 0.32, b),
        *_marks(look, -0.2, 0.2, 0.5, 0.28),
        ellipse(0.44, -0.3, 0.35, 0.34, b),
        ellipse(0.74, -0.18, 0.24, 0.17, shade(b, 1.35)),
        ellipse(0.92, -0.27, 0.09, 0.08, OUTLINE, inked=False),
        *_eye(0.56, -0.4),
        ellipse(0.24, -0.18 + 0.1 * ear, 0.15, 0.32 + 0.12 * ear, look.accent, 0.15),
        *_wear(look, (0.42, -0.6), (0.3, 0.04), (-0.14, 0.2), 0.9),
    ]


def _cat(look: Look) -> list[Part]:
    ear, tail, width = look.proportions
    b, w = look.body, 0.42 + 0.08 * width
    tip = -0.15 - 0.3 * tail
    return [
        *limb([(0.3, 0.75), (0.72, 0.7), (0.82, 0.35), (0.66, tip)], 0.16, b),
        *[polygon([(s * 0.42, -0.45), (s * 0.36, -0.95 - 0.1 * ear), (s * 0.06, -0.62)], b) for s in (-1, 1)],
        *[polygon([(s * 0.36, -0.55), (s * 0.33, -0.82), (s * 0.17, -0.64)], look.accent, inked=False) for s in (-1, 1)],
        ellipse(0, 0.42, w, 0.5, b),
        *_marks(look, 0, 0.4, w * 0.85, 0.42),
        *[ellipse(s * 0.2, 0.86, 0.17, 0.1, shade(b, 1.25)) for s in (-1, 1)],
        ellipse(0, -0.3, 0.48, 0.38, b),
        *_eye(-0.2, -0.34, 0.085),
        *_eye(0.2, -0.34, 0.085),
        polygon([(-0.07, -0.2), (0.07, -0.2), (0, -0.11)], (240, 120, 130), inked=False),
        *[
            q
            for s in (-1, 1)
            for v in (-0.06, 0.05)
            for q in limb([(s * 0.2, -0.14), (s * 0.56, -0.14 + v * 2)], 0.025, OUTLINE, inked=False)
        ],
        *_wear(look, (0, -0.64), (0, 0.06), (0, 0.42), 0.9),
    ]


def _duck(look: Look) -> list[Part]:
    bill, tail, neck = look.proportions
    b = look.body
    up = -0.08 * neck
    return [
        polygon([(-0.5, 0.1), (-0.95, -0.12 - 0.2 * tail), (-0.78, 0.4)], b),
        polygon([(0.62, -0.48 + up), (1.0 + 0.12 * bill, -0.34 + up), (0.62, -0.2 + up)], look.accent),
        *limb([(0.34, -0.25 + up), (0.3, 0.2)], 0.36, b),
        ellipse(-0.04, 0.4, 0.74, 0.44, b),
        ellipse(0.36, -0.38 + up, 0.35, 0.34, b),
        ellipse(-0.18, 0.36, 0.4, 0.22, shade(b, 0.78), -0.15, inked=False),
        *_marks(look, -0.1, 0.4, 0.55, 0.34),
        *_eye(0.46, -0.45 + up),
        *_wear(look, (0.34, -0.68 + up), (0.32, -0.02), (0.24, 0.4), 0.85),
    ]


def _backpack(look: Look) -> list[Part]:
    pocket, width, top = look.proportions
    b, a, w = look.body, look.accent, 0.58 + 0.08 * width
    return [
        *limb([(-0.2, -0.72), (-0.16, -0.92), (0.16, -0.92), (0.2, -0.72)], 0.1, shade(a, 0.8)),
        *[box(s * (w + 0.06), 0.3, 0.14, 0.42, a, 0.12) for s in (-1, 1)],
        box(0, 0.1, w, 0.84, b, 0.3 + 0.1 * top),
        *_marks(look, 0, -0.1, w * 0.8, 0.55),
        box(0, 0.5, w * 0.72, 0.3 + 0.06 * pocket, a, 0.12),
        *limb([(-w * 0.55, 0.36), (w * 0.55, 0.36)], 0.05, OUTLINE, inked=False),
        *limb([(-w * 0.75, -0.3), (w * 0.75, -0.3)], 0.06, shade(b, 0.6), inked=False),
        *_wear(look, (0, -0.72), (0, 0.08), (0, -0.46 if look.marking == "none" else 0.52), 0.75),
    ]


def _bear(look: Look) -> list[Part]:
    ear, belly, limb_length = look.proportions
    b, a, r = look.body, look.accent, 0.19 + 0.04 * ear
    reach = 0.06 * limb_length
    return [
        *[ellipse(s * 0.4, -0.78, r, r, b) for s in (-1, 1)],
        *[ellipse(s * 0.4, -0.78, r * 0.55, r * 0.55, a, inked=False) for s in (-1, 1)],
        *[ellipse(s * (0.56 + reach), 0.16, 0.26 + reach, 0.15, b, s * 0.6) for s in (-1, 1)],
        *[ellipse(s * 0.4, 0.8, 0.24, 0.19 + reach, b) for s in (-1, 1)],
        *[ellipse(s * 0.4, 0.82, 0.12, 0.1, a, inked=False) for s in (-1, 1)],
        ellipse(0, 0.38, 0.46, 0.46, b),
        ellipse(0, 0.42, 0.27 + 0.05 * belly, 0.3, a, inked=False),
        *_marks(look, 0, 0.38, 0.4, 0.38),
        ellipse(0, -0.42, 0.5, 0.42, b),
        ellipse(0, -0.26, 0.23, 0.18, a, inked=False),
        ellipse(0, -0.34, 0.09, 0.07, OUTLINE, inked=False),
        *_eye(-0.22, -0.5),
        *_eye(0.22, -0.5),
        *_wear(look, (0, -0.78), (0, 0.0), (0, 0.42), 0.9),
    ]


def _house(look: Look) -> list[Part]:
    roof, door, width = look.proportions
    b, w = look.body, 0.66 + 0.08 * width
    peak = -0.92 + 0.1 * roof
    return [
        box(0.42, -0.62, 0.11, 0.24, shade(look.accent, 0.8), 0.02),
        box(0, 0.38, w, 0.52, b, 0.03),
        *_marks(look, 0, 0.35, w * 0.9, 0.48),
        polygon([(-w - 0.2, -0.1), (0, peak), (w + 0.2, -0.1)], look.accent),
        box(-0.28, 0.56, 0.17 + 0.03 * door, 0.34, shade(b, 0.5), 0.04, inked=False),
        box(0.3, 0.34, 0.2, 0.18, (190, 228, 250), 0.02, inked=False),
        *limb([(0.3, 0.17), (0.3, 0.5)], 0.04, OUTLINE, inked=False),
        *_wear(look, (0, peak + 0.05), (0, -0.05), (0, -0.4), 0.7),
    ]


def _tree(look: Look) -> list[Part]:
    crown, trunk, width = look.proportions
    b, r = look.body, 0.4 + 0.05 * crown
    return [
        box(0, 0.6, 0.13 + 0.03 * trunk, 0.36, look.accent, 0.03),
        *[ellipse(s * (0.36 + 0.06 * width), 0.02, r, r * 0.9, b) for s in (-1, 1)],
        ellipse(0, -0.42, r * 1.12, r * 1.1, b),
        ellipse(-0.12, -0.52, r * 0.5, r * 0.4, shade(b, 1.25), inked=False),
        *_marks(look, 0, -0.12, 0.5, 0.5),
        *_wear(look, (0, -0.85), (0, 0.36), (0, -0.15), 0.8),
    ]


def _boat(look: Look) -> list[Part]:
    sail, hull, mast = look.proportions
    b, a = look.body, look.accent
    top = -0.9 - 0.06 * mast
    return [
        *limb([(0.02, top), (0.02, 0.4)], 0.09, (120, 82, 50)),
        polygon([(0.12, top + 0.08), (0.74 + 0.1 * sail, 0.24), (0.12, 0.24)], a),
        polygon([(-0.08, top + 0.3), (-0.56, 0.24), (-0.08, 0.24)], shade(a, 0.86)),
        polygon([(-0.95, 0.36), (0.95, 0.36), (0.62 + 0.1 * hull, 0.86), (-0.62 - 0.1 * hull, 0.86)], b),
        *_marks(look, 0, 0.58, 0.6, 0.22),
        *_wear(look, (0.02, top + 0.12), (0, 0.42), (0.3, 0.0), 0.65),
    ]


def _car(look: Look) -> list[Part]:
    cabin, wheel, length = look.proportions
    b, r = look.body, 0.24 + 0.03 * wheel
    e = 0.92 + 0.06 * length
    roof = -0.4 - 0.08 * cabin
    return [
        polygon([(-0.62, 0.1), (-0.42, roof), (0.3, roof), (0.62, 0.1)], b),
        polygon([(-0.46, 0.04), (-0.32, roof + 0.12), (-0.08, roof + 0.12), (-0.08, 0.04)], (190, 228, 250), inked=False),
        polygon([(0.04, 0.04), (0.04, roof + 0.12), (0.24, roof + 0.12), (0.44, 0.04)], (190, 228, 250), inked=False),
        box(0, 0.26, e, 0.28, b, 0.16),
        *_marks(look, 0, 0.24, 0.6, 0.26),
        ellipse(e - 0.1, 0.2, 0.08, 0.08, (255, 240, 150), inked=False),
        *[ellipse(s * 0.5, 0.54, r, r, (52, 48, 58)) for s in (-1, 1)],
        *[ellipse(s * 0.5, 0.54, r * 0.45, r * 0.45, look.accent, inked=False) for s in (-1, 1)],
        *_wear(look, (-0.06, roof + 0.02), (0, 0.1), (0, 0.26), 0.75),
    ]


def _cup(look: Look) -> list[Part]:
    handle, height, taper = look.proportions
    b = look.body
    top, foot = -0.42 - 0.1 * height, 0.42 + 0.06 * taper
    return [
        *limb([(0.5, -0.12), (0.86 + 0.06 * handle, -0.1), (0.84 + 0.06 * handle, 0.38), (0.42, 0.44)], 0.15, b),
        polygon([(-0.62, top), (0.62, top), (foot, 0.86), (-foot, 0.86)], b),
        *_marks(look, 0, 0.24, 0.46, 0.48),
        ellipse(0, top, 0.62, 0.16, shade(b, 1.3)),
        ellipse(0, top + 0.02, 0.5, 0.1, look.accent, inked=False),
        *_wear(look, (0, top - 0.02), (0, 0.0), (0, 0.3), 0.85),
    ]


FIGURES: dict[str, Callable[[Look], list[Part]]] = {
    "dog": _dog,
    "cat": _cat,
    "duck": _duck,
    "backpack": _backpack,
    "teddy bear": _bear,
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "car": _car,
    "cup": _cup,
}


def plain(kind: str, body: RGB) -> Look:
    """An ordinary member of a class in one colour: what a caption's words can say and no more."""
    accents: dict[str, RGB] = {
        "duck": (250, 150, 30),
        "house": (110, 60, 60),
        "tree": (112, 76, 48),
        "boat": WHITE,
        "car": (220, 220, 226),
        "cup": (92, 58, 40),
        "teddy bear": shade(body, 1.5),
        "backpack": shade(body, 0.72),
    }
    return Look(kind, body, accents.get(kind, shade(body, 0.7)))


def individual(kind: str, rng: np.random.Generator) -> Look:
    """A random individual of a class, with an identity that words cannot give."""
    palette = [*COLOURS.values(), *UNNAMED]
    body, accent, mark, wear = (palette[i] for i in rng.choice(len(palette), 4, replace=False))
    return Look(
        kind,
        body,
        accent,
        str(rng.choice(MARKINGS)),
        mark,
        str(rng.choice(ACCESSORIES, p=[0.36, 0.16, 0.16, 0.16, 0.16])),
        wear,
        tuple(float(v) for v in rng.uniform(-1, 1, 3)),
    )
