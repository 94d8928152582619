"""A picture of regions: who has which part of the picture, with numbers and prompts."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch.nn import functional as F

from ..method.regions import RegionMask, shares
from .pictures import GREY, INK, LINE, MARGIN, PAPER, SERIES, Colour, fit_text, font, width_of, wrap_text

LONGER = 768  # pixels of the map's longer side
GRID, CELLS = 256, 120  # a longer side too: where shares are computed, and where names look for room
BADGE = 26
TINT = 0.42  # of a region's colour, where it holds all
LINES = 5  # of a prompt below the map


def region_map(regions: Sequence[tuple[str, RegionMask]], image: Image.Image | None = None) -> Image.Image:
    """Prompts and places as a map over ``image`` or paper, and every prompt below it; of the image's shape, else of the masks'."""
    places = [place for _, place in regions]
    wide, high = _shape(places, image)
    below = [wrap_text(text, 14, wide - BADGE - 12) or ["(no prompt)"] for text, _ in regions]
    below = [lines if len(lines) <= LINES else [*lines[: LINES - 1], fit_text(f"{lines[LINES - 1]} ...", 14, 10**4)] for lines in below]
    rows = [max(BADGE, 19 * len(lines) + (17 if _settings(place) else 0)) + 10 for lines, place in zip(below, places, strict=True)]
    sheet = Image.new("RGB", (wide + 2 * MARGIN, high + sum(rows) + 2 * MARGIN + (14 if rows else 0)), PAPER)
    sheet.paste(_coloured(places, _ground(image, wide, high)), (MARGIN, MARGIN))
    for u, place in enumerate(places):
        sheet.paste(SERIES[u % len(SERIES)], (MARGIN - 4, MARGIN - 4), _outline(place.mask, wide, high))
    pen = ImageDraw.Draw(sheet, "RGBA")
    pen.rectangle((MARGIN - 1, MARGIN - 1, MARGIN + wide, MARGIN + high), outline=LINE)
    for u, room in _rooms(places, wide, high).items():
        _name(pen, u, regions[u][0], [MARGIN + edge for edge in room])
    y = MARGIN + high + 14
    for u, (lines, row) in enumerate(zip(below, rows, strict=True)):
        _badge(pen, u, MARGIN, y)
        for i, line in enumerate(lines):
            pen.text((MARGIN + BADGE + 12, y + 13 + 19 * i), line, INK if regions[u][0].strip() else GREY, font(14), anchor="lm")
        pen.text((MARGIN + BADGE + 12, y + 12 + 19 * len(lines)), _settings(places[u]), GREY, font(12), anchor="lm")
        y += row
    return sheet


def _shape(places: Sequence[RegionMask], image: Image.Image | None, longer: int = LONGER) -> tuple[int, int]:
    """Width and height: the picture's, or those of the mask that is least square, as boxes fit all."""
    shapes = [image.size] if image else [(p.mask.shape[1], p.mask.shape[0]) for p in places]
    width, height = max(shapes, key=lambda s: max(s) / min(s), default=(1, 1))
    scale = longer / max(width, height)
    return max(64, round(width * scale)), max(64, round(height * scale))


def _ground(image: Image.Image | None, wide: int, high: int) -> Image.Image:
    """The picture, dimmed, or paper with lines at its thirds."""
    if image:
        seen = image.convert("RGB").resize((wide, high), Image.Resampling.LANCZOS)
        return Image.blend(seen, Image.new("RGB", seen.size, PAPER), 0.4)
    paper = Image.new("RGB", (wide, high), (247, 248, 250))
    pen = ImageDraw.Draw(paper)
    for third in (1, 2):
        pen.line((wide * third // 3, 0, wide * third // 3, high), LINE)
        pen.line((0, high * third // 3, wide, high * third // 3), LINE)
    return paper


def _coloured(places: Sequence[RegionMask], ground: Image.Image) -> Image.Image:
    """The ground in the colours of the regions, each as strong as its share in every place."""
    columns, rows = (max(1, round(side * GRID / max(ground.size))) for side in ground.size)
    held = shares(places, rows, columns)[1:]
    colours = torch.tensor([SERIES[u % len(SERIES)] for u in range(len(places))]).float().view(-1, 3)
    paint = torch.stack([*(colours.T @ held), held.sum(0)]).view(1, 4, rows, columns)
    paint = F.interpolate(paint, ground.size[::-1], mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    colour, share = TINT * paint[..., :3].numpy(), TINT * paint[..., 3:].numpy()
    mixed = np.asarray(ground, np.float32) * (1 - share) + colour
    return Image.fromarray(mixed.clip(0, 255).round().astype(np.uint8))


def _outline(mask: torch.Tensor, wide: int, high: int) -> Image.Image:
    """A line along the inside of the mask's edge, as coverage; 4 pixels wider than the map on every side."""
    grey = Image.fromarray(mask.float().clamp(0, 1).mul(255).round().byte().cpu().numpy())
    padded = Image.new("L", (wide + 8, high + 8))
    padded.paste(grey.resize((wide, high), Image.Resampling.BILINEAR), (4, 4))
    inside = np.asarray(padded.filter(ImageFilter.GaussianBlur(2)), np.float32) / 255
    inside = inside / max(inside.max(), 1e-3) if mask.any() else inside  # a place of a few pixels has an edge too
    line = ((inside - 0.42) / 0.16).clip(0, 1) * ((0.985 - inside) / 0.04).clip(0, 1)
    return Image.fromarray((255 * line).round().astype(np.uint8))


def _rooms(places: Sequence[RegionMask], wide: int, high: int) -> dict[int, tuple[int, int, int, int]]:
    """The largest rectangle in pixels that each region has to itself, else shares, else covers; none for an empty one."""
    columns, rows = (max(1, round(side * CELLS / max(wide, high))) for side in (wide, high))
    held = shares(places, rows, columns)[1:].view(-1, rows, columns)
    most = held.amax(0) if len(places) else held
    found = {}
    for u, place in enumerate(places):
        covered = F.adaptive_max_pool2d(place.mask[None].float(), (rows, columns))[0] > 0
        alone = (held[u] == most) & (held[u] > 0) & ((held > 0).sum(0) == 1)
        for cells in (alone, held[u] > 0, covered):
            if cells.any():
                x0, y0, x1, y1 = largest_rectangle(cells.numpy())
                found[u] = x0 * wide // columns, y0 * high // rows, x1 * wide // columns, y1 * high // rows
                break
    return found


def largest_rectangle(cells: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the largest rectangle of true cells in ``[rows, columns]``."""
    best, found = 0, (0, 0, 0, 0)
    heights = np.zeros(cells.shape[1] + 1, int)  # of true cells upward; the last column stays empty and ends every rectangle
    for y, row in enumerate(cells, 1):
        heights[:-1] = np.where(row, heights[:-1] + 1, 0)
        starts: list[tuple[int, int]] = []  # columns where rectangles of growing height begin
        for x, height in enumerate(heights.tolist()):
            left = x
            while starts and starts[-1][1] >= height:
                left, tall = starts.pop()
                if tall * (x - left) > best:
                    best, found = tall * (x - left), (left, y - tall, x, y)
            starts.append((left, height))
    return found


def _name(pen: ImageDraw.ImageDraw, u: int, text: str, room: Sequence[int]) -> None:
    """A region's number, and as much of its prompt as there is room for."""
    left, top, right, bottom = room
    width, count = right - left - BADGE - 34, (bottom - top - 24) // 19
    words = wrap_text(text, 14, width) if width >= 50 and count >= 1 else []
    if not words:
        return _badge(pen, u, (left + right - BADGE) // 2, (top + bottom - BADGE) // 2)
    shown = words[:count] if len(words) <= count else [*words[: count - 1], fit_text(" ".join(words[count - 1 :]), 14, width)]
    widest = max(width_of(line, 14) for line in shown)
    pen.rounded_rectangle((left + 9, top + 9, left + BADGE + 24 + widest, top + 15 + max(BADGE, 19 * len(shown))), 8, (*PAPER, 205))
    _badge(pen, u, left + 12, top + 12)
    for i, line in enumerate(shown):
        pen.text((left + BADGE + 19, top + 25 + 19 * i), line, INK, font(14), anchor="lm")


def _badge(pen: ImageDraw.ImageDraw, u: int, x: int, y: int) -> None:
    colour: Colour = SERIES[u % len(SERIES)]
    pen.rounded_rectangle((x, y, x + BADGE, y + BADGE), 7, colour, PAPER, 1)
    pen.text((x + BADGE / 2, y + BADGE / 2), str(u + 1), PAPER, font(14), anchor="mm")


def _settings(place: RegionMask) -> str:
    """Say what a region has that is not as usual."""
    said = [f"strength {place.strength:g}"] if place.strength != 1 else []
    said += [f"priority {place.priority}"] if place.priority else []
    said += [f"soft edge {place.feather:g}"] if place.feather else []
    return ", ".join(said + ["empty"] * (not place.mask.any()))
