"""Figures drawn: intervals beside each other, and curves, with PIL alone."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from .interval import Interval
from .pictures import GREY, INK, LINE, MARGIN, PAPER, SERIES, Colour, fit_text, font, heading, width_of, wrap_text

WIDE = 760  # pixels
ROW = 26


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers that span ``low .. high``, at most about ``most`` of them."""
    reach = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(reach / most))
    step = next(step * times for times in (1, 2, 5, 10) if reach / (step * times) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def frame_plot(title: str, note: str, height: float, above: int = 14, wide: int = WIDE) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """Make an empty sheet under its heading, with room of ``height`` pixels: the sheet, a pen for it, and where the room begins."""
    words = wrap_text(note, 12, wide - 2 * MARGIN)
    top = MARGIN + 28 + 18 * len(words) + above
    sheet = Image.new("RGB", (wide, top + round(height) + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    heading(pen, title, words)
    return sheet, pen, top


def interval_plot(rows: Sequence[tuple[str, Interval]], title: str, note: str = "") -> Image.Image:
    """A dot for each figure and a line for its interval, on one scale."""
    bounds = [b for _, i in rows for b in (i.value, i.low, i.high) if math.isfinite(b)] or [0.0]
    marks = ticks(min(bounds), max(bounds))
    numbers = [str(interval) for _, interval in rows]
    left = MARGIN + min(max([width_of(name, 13) for name, _ in rows], default=0), 240) + 16
    right = WIDE - MARGIN - max([width_of(n, 12) for n in numbers], default=0) - 16
    height = ROW * len(rows)
    sheet, pen, top = frame_plot(title, note, height + 26, above=12)
    bottom = top + height

    def at(value: float) -> float:
        return left + (right - left) * (value - marks[0]) / (marks[-1] - marks[0])

    for mark in marks:
        pen.line((at(mark), top, at(mark), bottom), LINE)
        pen.text((at(mark), bottom + 12), f"{mark:g}", GREY, font(11), anchor="mm")
    for i, ((name, interval), number) in enumerate(zip(rows, numbers, strict=True)):
        y = top + ROW * (i + 0.5)
        pen.text((left - 14, y), fit_text(name, 13, 240), INK, font(13), anchor="rm")
        if math.isfinite(interval.low):
            pale = tuple(round(255 - (255 - c) * 0.45) for c in SERIES[0])
            pen.rounded_rectangle((at(interval.low), y - 3, at(interval.high), y + 3), 3, (pale[0], pale[1], pale[2]))
        if math.isfinite(interval.value):
            x = at(interval.value)
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), SERIES[0], PAPER)
        pen.text((WIDE - MARGIN, y), number, INK, font(12), anchor="rm")
    return sheet


def line_plot(series: Mapping[str, Sequence[float]], labels: Sequence[str], title: str, note: str = "", below: str = "") -> Image.Image:
    """A curve for each of ``series`` over the points named by ``labels``; nan leaves a gap. ``below`` names the horizontal axis."""
    known = [v for values in series.values() for v in values if math.isfinite(v)] or [0.0]
    marks = ticks(min(known), max(known))
    left = MARGIN + max(width_of(f"{m:g}", 11) for m in marks) + 12
    legend = min(max([width_of(name, 12) for name in series], default=0), 180) + 30
    right, height = WIDE - MARGIN - legend, max(230, 18 * len(series))
    sheet, pen, top = frame_plot(title, note, height + (44 if below else 24))
    bottom = top + height

    def place(i: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * (i + 0.5) / len(labels)
        return x, bottom - height * (value - marks[0]) / (marks[-1] - marks[0])

    for mark in marks:
        y = place(0, mark)[1]
        pen.line((left, y, right, y), LINE)
        pen.text((left - 8, y), f"{mark:g}", GREY, font(11), anchor="rm")
    every = max(1, math.ceil(len(labels) * max([width_of(x, 11) + 10 for x in labels], default=1) / (right - left)))
    for i, label in enumerate(labels):
        if i % every == 0:
            pen.text((place(i, marks[0])[0], bottom + 12), fit_text(label, 11, 120), GREY, font(11), anchor="mm")
    if below:
        pen.text(((left + right) / 2, bottom + 32), below, GREY, font(12), anchor="mm")
    for k, (name, values) in enumerate(series.items()):
        colour: Colour = SERIES[k % len(SERIES)]
        _draw_curve(pen, [place(i, v) if math.isfinite(v) else None for i, v in enumerate(values)], colour)
        y = top + 9 + 18 * k
        pen.line((right + 10, y, right + 24, y), colour, 3)
        pen.text((right + 30, y), fit_text(name, 12, 180), INK, font(12), anchor="lm")
    return sheet


def _draw_curve(pen: ImageDraw.ImageDraw, spots: Sequence[tuple[float, float] | None], colour: Colour) -> None:
    """Draw a dot for each point of a curve and a line between neighbours; ``None`` leaves a gap."""
    for a, b in zip(spots, spots[1:], strict=False):
        if a and b:
            pen.line((*a, *b), colour, 2)
    for spot in filter(None, spots):
        pen.ellipse((spot[0] - 3, spot[1] - 3, spot[0] + 3, spot[1] + 3), colour)


def scatter_plot(groups: Mapping[str, Sequence[tuple[float, float]]], title: str, note: str = "") -> Image.Image:
    """Points of several groups on one plane, both directions on the same scale."""
    points = [p for group in groups.values() for p in group] or [(0.0, 0.0)]
    side = 360
    sheet, pen, top = frame_plot(title, note, side)
    middle = [sum(bound(p[d] for p in points) for bound in (min, max)) / 2 for d in (0, 1)]
    reach = max(max(abs(p[d] - middle[d]) for p in points) for d in (0, 1)) * 1.06 or 1.0
    pen.rectangle((MARGIN, top, MARGIN + side, top + side), PAPER, LINE)
    for k, (name, group) in enumerate(groups.items()):
        colour: Colour = SERIES[k % len(SERIES)]
        for x, y in group:
            at = MARGIN + side / 2 * (1 + (x - middle[0]) / reach), top + side / 2 * (1 - (y - middle[1]) / reach)
            pen.ellipse((at[0] - 4, at[1] - 4, at[0] + 4, at[1] + 4), colour, PAPER)
        y = top + 12 + 20 * k
        pen.ellipse((MARGIN + side + 24, y - 4, MARGIN + side + 32, y + 4), colour)
        pen.text((MARGIN + side + 40, y), fit_text(f"{name} ({len(group)})", 13, WIDE - side - 80), INK, font(13), anchor="lm")
    return sheet
