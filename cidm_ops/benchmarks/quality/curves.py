"""Curves of methods over the strength of what they learned, drawn by matplotlib."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from PIL import Image

from ...measure.pictures import GREY, INK, LINE, SERIES, Colour

DPI = 100
WIDE, HIGH = 9.2, 5.2  # inches


def curve_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], title: str, note: str = "", below: str = "", beside: str = ""
) -> Image.Image:
    """Draws a line through the points ``(x, y)`` of each curve; ``below`` and ``beside`` name the axes. The first curves have filled
    points, those that take a colour again hollow ones.
    """
    figure = Figure(figsize=(WIDE, HIGH), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for k, (name, curve) in enumerate(curves.items()):
        colour = _rgb(SERIES[k % len(SERIES)])
        inside = colour if k < len(SERIES) else "white"
        x, y = zip(*curve, strict=True) if curve else ((), ())
        axes.plot(x, y, marker="o", markersize=7, linewidth=1.6, color=colour, markerfacecolor=inside, label=name)
    axes.set_title(f"{title}\n", loc="left", fontsize=14, color=_rgb(INK))
    axes.text(0, 1.02, note, transform=axes.transAxes, fontsize=9, color=_rgb(GREY))
    axes.set_xlabel(below, color=_rgb(GREY))
    axes.set_ylabel(beside, color=_rgb(GREY))
    axes.grid(color=_rgb(LINE))
    axes.set_axisbelow(True)
    axes.tick_params(color=_rgb(LINE), labelcolor=_rgb(GREY))
    axes.spines[:].set_visible(False)
    if curves:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return Image.open(data).convert("RGB")


def _rgb(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = (part / 255 for part in colour)
    return red, green, blue
