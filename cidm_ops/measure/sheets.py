"""Contact sheets made for reading: pictures with what was measured of each under them."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from .pictures import GREY, INK, MARGIN, PAPER, fit_text, font, heading, wrap_text
from .report import to_pixels

WIDE = 1100  # pixels, at most
BELOW = 40  # pixels for two lines under a picture


@dataclass(frozen=True)
class Strip:
    """A row of ``pictures``, each ``[3, H, W]`` in [-1, 1] and of any shape, with two short lines under each."""

    title: str
    pictures: Sequence[Tensor]
    labels: Sequence[tuple[str, str]] = ()


def sheet(strips: Sequence[Strip], title: str, note: str = "", side: int = 128) -> Image.Image:
    """Strips under each other, broken into as many lines as they need; nothing of a picture is cut off."""
    columns = max(1, min((WIDE - 2 * MARGIN + 10) // (side + 10), max([len(s.pictures) for s in strips], default=1)))
    wide = max(2 * MARGIN + columns * (side + 10) - 10, 520)
    words = wrap_text(note, 12, wide - 2 * MARGIN)
    deep = [side + (BELOW if strip.labels else 12) for strip in strips]
    lines = [-(-len(strip.pictures) // columns) for strip in strips]
    head = MARGIN + 28 + 18 * len(words) + 6
    whole = Image.new("RGB", (wide, head + sum(30 + n * d for n, d in zip(lines, deep, strict=True)) + MARGIN), PAPER)
    pen = ImageDraw.Draw(whole)
    heading(pen, title, words)
    y = head
    for strip, each, count in zip(strips, deep, lines, strict=True):
        pen.text((MARGIN, y + 10), fit_text(strip.title, 14, wide - 2 * MARGIN), INK, font(14), anchor="lm")
        y += 26
        for i, picture in enumerate(strip.pictures):
            left, top = MARGIN + i % columns * (side + 10), y + i // columns * each
            tile = Image.fromarray(to_pixels(picture[None])[0])
            tile.thumbnail((side, side), Image.Resampling.LANCZOS) if max(tile.size) > side else None
            whole.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
            if strip.labels:
                first, second = strip.labels[i]
                pen.text((left + side / 2, top + side + 11), fit_text(first, 12, side), INK, font(12), anchor="mm")
                pen.text((left + side / 2, top + side + 26), fit_text(second, 11, side), GREY, font(11), anchor="mm")
        y += count * each + 4
    return whole


def below(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures under each other as one."""
    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    y = 0
    for picture in pictures:
        whole.paste(picture, (0, y))
        y += picture.height
    return whole
