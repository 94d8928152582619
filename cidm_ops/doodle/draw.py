"""Vector drawing: parts in the unit box, inked and filled on a supersampled canvas.

A part is a closed outline ``[P, 2]`` with a colour. Coordinates run from -1 to 1, x to the right, y down.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, ...]  # red, green, blue in 0..255
OUTLINE: RGB = (52, 38, 58)
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Part:
    """A filled outline. ``inked`` parts belong to the silhouette and get the dark contour."""

    outline: np.ndarray
    colour: RGB
    inked: bool = True


def shade(colour: RGB, factor: float) -> RGB:
    """Darken (``factor < 1``) or lighten towards white (``factor > 1``)."""
    c = np.asarray(colour, dtype=float)
    c = c * factor if factor <= 1 else c + (255 - c) * (factor - 1)
    return tuple(int(v) for v in c.round())


def blend(a: RGB, b: RGB, amount: float) -> RGB:
    """Linear mixture, ``amount`` of ``b``."""
    return tuple(int(round(x + (y - x) * amount)) for x, y in zip(a, b, strict=True))


def ellipse(x: float, y: float, rx: float, ry: float, colour: RGB, turn: float = 0.0, inked: bool = True) -> Part:
    """An ellipse with half axes ``rx, ry``, turned by ``turn`` radians."""
    a = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    p = np.stack([rx * np.cos(a), ry * np.sin(a)], 1)
    c, s = np.cos(turn), np.sin(turn)
    return Part(p @ np.array([[c, s], [-s, c]]) + (x, y), colour, inked)


def polygon(points: list[tuple[float, float]], colour: RGB, inked: bool = True) -> Part:
    return Part(np.asarray(points, dtype=float), colour, inked)


def box(x: float, y: float, rx: float, ry: float, colour: RGB, corner: float = 0.12, inked: bool = True) -> Part:
    """A rectangle with half sides ``rx, ry`` and rounded corners."""
    a = np.linspace(0, np.pi / 2, 5)
    arc = np.stack([np.cos(a), np.sin(a)], 1) * corner
    centres = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * (rx - corner, ry - corner)
    turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return Part(np.concatenate([arc @ t + m for t, m in zip(turns, centres, strict=True)]) + (x, y), colour, inked)


def limb(points: list[tuple[float, float]], width: float, colour: RGB, inked: bool = True) -> list[Part]:
    """A thick round-ended line through ``points``."""
    parts = []
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        d = np.array([x1 - x0, y1 - y0])
        length = float(np.hypot(*d))
        turn = float(np.arctan2(d[1], d[0]))
        parts.append(
            Part(
                box(0, 0, length / 2 + width / 2, width / 2, colour, width / 2 - 1e-3).outline
                @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
                + ((x0 + x1) / 2, (y0 + y1) / 2),
                colour,
                inked,
            )
        )
    return parts


@dataclass(frozen=True)
class Pose:
    """A pose says where parts stand: their centre ``x, y`` in pixels of a 128 px picture, ``half`` pixels per unit, mirrored or not, turned
    or not.
    """

    x: float
    y: float
    half: float
    flip: bool = False
    tilt: float = 0.0


class Canvas:
    """A supersampled RGB canvas of ``size`` x ``size`` final pixels."""

    def __init__(self, size: int, background: np.ndarray):
        """``background``: ``[size, size, 3]`` uint8."""
        self.size = size
        self.scale = size * SUPERSAMPLE / 128
        big = size * SUPERSAMPLE
        self.image = Image.fromarray(background).resize((big, big), Image.Resampling.BICUBIC)

    def draw(self, parts: list[Part], pose: Pose, ink: RGB, line: float) -> np.ndarray:
        """Draws ``parts`` in a ``pose``, outlined in ``ink`` by a ``line`` of so many pixels of a 128 px picture.

        Returns the silhouette, ``[size, size]`` uint8 (0 or 255, antialiased).
        """
        c, s = np.cos(pose.tilt), np.sin(pose.tilt)
        affine = np.array([[-1.0 if pose.flip else 1.0, 0], [0, 1.0]]) @ np.array([[c, s], [-s, c]]) * pose.half
        outlines = [[tuple(p) for p in (part.outline @ affine + (pose.x, pose.y)) * self.scale] for part in parts]
        width = max(1, round(line * self.scale))
        pen = ImageDraw.Draw(self.image)
        silhouette = Image.new("L", self.image.size)
        mask = ImageDraw.Draw(silhouette)
        for part, outline in zip(parts, outlines, strict=True):
            if part.inked:
                closed = [*outline, outline[0], outline[1]]
                pen.line(closed, fill=ink, width=width * 2, joint="curve")
                mask.line(closed, fill=255, width=width * 2, joint="curve")
                mask.polygon(outline, fill=255)
        for part, outline in zip(parts, outlines, strict=True):
            pen.polygon(outline, fill=part.colour)
        return np.asarray(silhouette.reduce(SUPERSAMPLE))

    def pixels(self) -> np.ndarray:
        """The picture, ``[size, size, 3]`` uint8."""
        return np.asarray(self.image.reduce(SUPERSAMPLE))
