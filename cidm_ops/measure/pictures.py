"""Pictures of figures, for people who look at a node: heat maps and bars, drawn with PIL alone."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..bank.concept import Concept
from ..method.overlap import layer_overlaps, overlaps
from ..models.registry import family_of

Colour = tuple[int, int, int]
PAPER, INK, GREY, LINE, RED = (255, 255, 255), (40, 40, 48), (118, 122, 134), (226, 228, 234), (190, 52, 40)
BLUES = ((244, 246, 251), (203, 219, 241), (130, 173, 222), (52, 116, 186), (16, 58, 120))
REDS = ((244, 246, 251), (247, 214, 206), (230, 150, 134), (196, 76, 60), (128, 28, 20))
SERIES = ((52, 116, 186), (214, 120, 44), (70, 150, 92), (150, 84, 168), (196, 76, 100), (60, 150, 160), (150, 120, 60), (96, 100, 200))
MARGIN = 20
MOST = 1200  # pixels of a heat map's cells along one side, before cells get too small to name


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def width_of(text: str, size: int) -> int:
    return math.ceil(font(size).getlength(text))


def fit_text(text: str, size: int, width: float) -> str:
    """Fit the text into one line, its end cut off with an ellipsis where it would be wider than ``width`` pixels."""
    text = " ".join(text.split())
    if width_of(text, size) <= width:
        return text
    kept = bisect_right(range(1, len(text) + 1), width, key=lambda count: width_of(text[:count] + "...", size))
    return text[:kept].rstrip() + "..."


def shade(value: float) -> Colour:
    """Shade a value from nearly white at 0 to dark blue at 1; negative values are red."""
    scale = BLUES if value >= 0 else REDS
    at = min(abs(value), 1.0) * (len(scale) - 1)
    low = min(int(at), len(scale) - 2)
    mixed = [round(a + (b - a) * (at - low)) for a, b in zip(scale[low], scale[low + 1], strict=True)]
    return mixed[0], mixed[1], mixed[2]


def to_image(picture: Image.Image) -> Tensor:
    """A picture as the host has them: ``[1, H, W, 3]`` in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)[None]


def from_image(images: Tensor) -> Image.Image:
    """The first picture of the host's ``[B, H, W, 3]`` in [0, 1]."""
    return Image.fromarray(images[0].clamp(0, 1).mul(255).round().byte().cpu().numpy())


def sideways(text: str, size: int, colour: Colour) -> Image.Image:
    """Text from bottom to top."""
    label = Image.new("RGB", (width_of(text, size) + 2, size + 5), PAPER)
    ImageDraw.Draw(label).text((1, 0), text, colour, font(size))
    return label.rotate(90, expand=True)


def heat_map(values: Tensor, rows: Sequence[str], columns: Sequence[str], title: str = "", note: str = "", top: float = 1.0) -> Image.Image:
    """``values [rows, columns]`` as shades from 0 to ``top``, with the numbers in the cells where there is room."""
    height, width = (max(14, min(30, MOST // max(1, n))) for n in (len(rows), len(columns)))
    numbers = height >= 22 and len(columns) <= 20
    width = 54 if numbers else width
    small = 12 if height >= 18 else 10
    left = MARGIN + max([width_of(fit_text(r, small, 360), small) for r in rows], default=0) + 10
    upright = not all(width_of(c, 12) <= width - 6 for c in columns)
    head = max([width_of(fit_text(c, 12, 200), 12) for c in columns], default=0) + 8 if upright else 22
    words = wrap_text(note, 12, max(len(columns) * width + left - MARGIN, 420))
    above = MARGIN + (32 if title else 0) + 18 * len(words) + (6 if words else 0) + head
    right = max(left + len(columns) * width, width_of(title, 18) + MARGIN, 440 + MARGIN if note else 0)
    sheet = Image.new("RGB", (right + MARGIN + 66, above + max(len(rows) * height, 90) + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    heading(pen, title, words)
    _head_columns(sheet, [fit_text(c, 12, 200) for c in columns], (left, above), width, upright)
    for y, name in enumerate(rows):
        pen.text((left - 10, above + (y + 0.5) * height), fit_text(name, small, 360), INK, font(small), anchor="rm")
    for y, row in enumerate(values.tolist()):
        for x, value in enumerate(row):
            box = (left + x * width, above + y * height, left + (x + 1) * width - 2, above + (y + 1) * height - 2)
            _draw_cell(pen, box, value, top, numbers)
    legend(pen, left + len(columns) * width + 18, above, max(min(len(rows) * height, 160), 90), top, bool((values < 0).any()))
    return sheet


def _head_columns(sheet: Image.Image, names: Sequence[str], at: tuple[int, int], width: int, upright: bool) -> None:
    """Write the name of each column of a heat map, ``width`` pixels wide, above its cells, which begin ``at`` that corner."""
    left, above = at
    pen = ImageDraw.Draw(sheet)
    for x, name in enumerate(names):
        if upright:
            label = sideways(name, 12, INK)
            sheet.paste(label, (left + x * width + (width - label.width) // 2, above - label.height - 4))
        else:
            pen.text((left + x * width + width / 2, above - 10), name, INK, font(12), anchor="mm")


def _draw_cell(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], value: float, top: float, number: bool) -> None:
    """Fill a cell of a heat map with its shade, and write its number in it; a zero stays pale."""
    pen.rectangle(box, shade(value / top))
    if number:
        colour = PAPER if abs(value / top) > 0.55 else INK if value else (190, 194, 204)
        pen.text(((box[0] + box[2] + 1) / 2, (box[1] + box[3] + 1) / 2), f"{value:.2f}", colour, font(12), anchor="mm")


def heading(pen: ImageDraw.ImageDraw, title: str, words: Sequence[str]) -> int:
    """A title and a note under it, at the upper left; returns where what follows may begin."""
    pen.text((MARGIN, MARGIN - 4), title, INK, font(18))
    y = MARGIN + (28 if title else 0)
    for line in words:
        pen.text((MARGIN, y), line, GREY, font(12))
        y += 18
    return y


def wrap_text(text: str, size: int, width: float) -> list[str]:
    """Break a text into lines of at most ``width`` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and width_of(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(fit_text(word, size, width))
    return lines


def legend(pen: ImageDraw.ImageDraw, x: int, y: int, height: int, top: float, signed: bool) -> None:
    """The scale of shades beside a heat map."""
    for i in range(height):
        part = 1 - i / (height - 1)
        pen.line((x, y + i, x + 10, y + i), shade(2 * part - 1 if signed else part))
    for part, text in ((0, f"{top:g}"), (1, f"{-top:g}" if signed else "0")):
        pen.text((x + 16, y + 6 + part * (height - 12)), text, GREY, font(11), anchor="lm")


def bars(pen: ImageDraw.ImageDraw, x: int, y: int, rows: Sequence[tuple[str, float]], label: int, width: int, top: float = 0.0) -> int:
    """A bar per row to the right of its label, its number behind it; returns where the next row would be."""
    top = top or max([value for _, value in rows], default=0) or 1.0
    for name, value in rows:
        pen.text((x + label - 8, y + 9), fit_text(name, 11, label - 8), INK, font(11), anchor="rm")
        pen.rectangle((x + label, y + 3, x + label + max(1, round(width * value / top)), y + 15), SERIES[0])
        pen.text((x + label + round(width * value / top) + 8, y + 9), f"{value:.2f}", GREY, font(11), anchor="lm")
        y += 20
    return y


@torch.no_grad()
def overlap_map(concepts: Sequence[Concept]) -> tuple[Image.Image, Tensor]:
    """The mean cosine of the principal angles between what concepts write, pairs by pairs, and as ``[G, G]``."""
    found = overlaps([c.factors for c in concepts])
    names = [f"<{c.name}>" for c in concepts]
    note = "Mean cosine of the principal angles between the spaces of the ups, over all layers: 0 nothing in common, 1 the same space."
    return heat_map(found, names, names, "Overlap of concepts", note), found


@torch.no_grad()
def pair_map(one: Concept, other: Concept) -> tuple[Image.Image, Tensor]:
    """The cosines of one pair layer by layer, the largest first, and as ``[layers, r]``."""
    layers = layer_overlaps(one.factors, other.factors)
    if not layers:
        raise ValueError(f"<{one.name}> and <{other.name}> change no layer in common: there is nothing to compare")
    rank = max(len(c) for c in layers.values())
    found = torch.stack([torch.nn.functional.pad(c, (0, rank - len(c))) for c in layers.values()])
    note = "Cosines of the principal angles in every layer, the largest first."
    columns, rows = [str(i + 1) for i in range(rank)], [family_of(one.architecture).short(n) for n in layers]
    return heat_map(found, rows, columns, f"Overlap of <{one.name}> and <{other.name}>", note), found
