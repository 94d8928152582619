"""Scores on their way to a report: every score node takes the results before it and adds its own."""

from collections.abc import Iterable, Sequence

from comfy_api.latest import io

from ..cidm_ops.measure.pictures import to_image
from ..cidm_ops.measure.report import Section
from ..cidm_ops.measure.sheets import below
from . import say

CATEGORY = "CIDM/scores"
Results = io.Custom("CIDM_RESULTS")
BEFORE = Results.Input("results", optional=True, tooltip="Scores before this one: chain them, then connect Score Report.")


def outputs(score: str, *more: io.Output, behind: Sequence[io.Output] = ()) -> list[io.Output]:
    """The figure, what a node has ``more``, words, picture and results, and what came later ``behind`` them: in the order of ``finish``."""
    return [
        io.Float.Output(display_name="score", tooltip=score),
        *more,
        io.String.Output(display_name="text", tooltip="The score with its 95 % interval, and the table."),
        io.Image.Output(display_name="picture", tooltip="Plots and contact sheets, to read."),
        Results.Output(display_name="results", tooltip="The results before, and this one: for the next score, or for Score Report."),
        *behind,
    ]


def finish(
    cls: type[io.ComfyNode],
    section: Section,
    results: Sequence[Section] | None,
    *more: float | str,
    warnings: Iterable[str] = (),
    behind: Sequence[float | str] = (),
) -> io.NodeOutput:
    """The outputs of a score node: the figure and what is ``more``, words, picture, results, and what is ``behind``."""
    picture, text = to_image(below(section.pictures)), section.text()
    value = section.figure.value if section.figure else 0.0
    values = (value, *more, text, picture, (*(results or ()), section), *behind)
    return say.output(cls, *values, text=text, warnings=warnings, picture=picture)
