"""The table of a benchmark, in plain text and as a page with plots and pictures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...bank.formats import write_picture
from ...bank.picture_file import open_picture
from ...measure.interval import Interval, mean_interval
from ...measure.plots import interval_plot
from ...measure.report import Section, contact_sheet, write_html
from ...text_table import text_table
from . import paper
from .curves import curve_plot
from .figures import Row
from .suite import Suite

SHOWN = 10  # pictures of a concept on the sheet
AHEAD = ("cidm_ia_less_{}", "cidm_ahead_of_{}_at_equal_ta", "cidm_least_ahead_of_{}_on_its_curve")


def table(rows: Mapping[str, Row], suite: Suite, note: str = "") -> str:
    """A line per method: IA, TA, IMS, forgetting and, where a judge read them, identity by parts, times 100; then in the paper's form, a
    column per concept, beside the paper's figures, and at the end a column of what a leaderboard has.
    """
    judged = any(row.parts for row in rows.values())
    overall = [["", "IA", "TA", "IMS (our reading)", "forgetting", *(["parts"] if judged else [])]]
    for row in rows.values():
        figures = [_with_interval(mean_interval(torch.tensor(values) * 100, "")) for values in (row.ia, row.ta, row.ims)]
        figures.append(f"{100 * statistics.mean(row.forgetting):.2f}" if row.forgetting else "-")
        parts = [_with_interval(mean_interval(torch.tensor(row.parts) * 100, "")) if row.parts else "-"] if judged else []
        overall.append([row.method.title, *figures, *parts])
    parts = [text_table(overall)]
    names = [lesson.name for lesson in suite.lessons]
    for i, key in enumerate(("IA", "TA")):
        lines = [[key, *(f"V{n + 1} {name}" for n, name in enumerate(names)), "avg."]]
        for name, row in rows.items():
            lines.append(_columns(row.method.title, [row.concepts[n][i] * 100 for n in names]))
            lines += [_columns("  the paper's", values[: len(names)]) for values in _printed(suite, key, name)]
        parts.append(text_table(lines))
    return "\n\n".join([*parts, _matching_table(rows, suite)]) + (f"\n{note}" if note else "")


def _matching_table(rows: Mapping[str, Row], suite: Suite) -> str:
    """The mean identity matching of each method, and beside it what a leaderboard prints where the suite is the paper's: one figure, of
    pictures and a model that it does not name.
    """
    board = paper.LEADERBOARD_IMS if suite.name == "cifc" else {}
    lines = [["IMS", "our reading", *(["leaderboard"] if board else [])]]
    for name, row in rows.items():
        values = [statistics.mean(row.ims) * 100, *([board.get(name, math.nan)] if board else [])]
        lines.append([row.method.title, *("-" if math.isnan(v) else f"{v:.1f}" for v in values)])
    return text_table(lines)


def _printed(suite: Suite, key: str, method: str) -> list[Sequence[float]]:
    """Return what the paper prints for a method by concept, where the suite is the paper's."""
    tables = [printed for model, printed in paper.TABLES.items() if suite.backbone.architecture.startswith(model)]
    return [printed[key][method] for printed in tables if method in printed[key]] if suite.name == "cifc" else []


def _columns(title: str, values: Sequence[float]) -> list[str]:
    return [title, *("-" if math.isnan(v) else f"{v:.1f}" for v in (*values, statistics.mean(values)))]


def _with_interval(found: Interval) -> str:
    return "-" if math.isnan(found.value) else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def page(folder: Path, rows: Mapping[str, Row], suite: Suite, found: Mapping[str, Any], note: str = "") -> None:
    """Write ``report.html``, and its plots as pictures of their own."""
    titles = {name: row.method.title for name, row in rows.items()}
    plots = _plots(rows, found)
    for key, plot in plots.items():
        write_picture(plot, folder / f"{key}.png")
    columns = ("", "IA", "low", "high", "TA", "low", "high", "IMS", "forgetting", "IA of seeds, spread", "parts", "low", "high")
    lines = [[titles[name], *_cells(name, found)] for name in rows]
    sections = [
        Section("Methods", "After the last task. IA and TA as in CIDM 4.1; IMS in our reading.", None, columns, lines, list(plots.values()))
    ]
    sections += _ahead(titles, found)
    for name in rows:
        if sheet := _sheet(folder, name, suite, int(found["seeds"][0])):
            sections.append(Section(titles[name], "The first prompts of each concept, one seed.", pictures=[sheet]))
    described = ", ".join(f"{key} {value}" for key, value in found.items() if isinstance(value, str | int))
    write_html(folder / "report.html", f"Benchmark: {suite.name}", sections, described, note)


def _plots(rows: Mapping[str, Row], found: Mapping[str, Any]) -> dict[str, Image.Image]:
    """Intervals of each figure that is known, and the curves of TA and IA where methods were painted at several strengths."""
    titles = {name: row.method.title for name, row in rows.items()}
    over = f"{len(next(iter(rows.values())).ia)} pairs of concept and seed"
    plots = {}
    for key, title in (
        ("ia", "Image alignment"),
        ("ta", "Text alignment"),
        ("forgetting", "Forgetting: best less last IA"),
        ("parts", "Identity by parts"),
    ):
        known = {name: torch.tensor(getattr(row, key)) for name, row in rows.items() if f"{name}_{key}" in found}
        if known:
            about = f"Mean over concepts and seeds after the last task, and its 95 % interval over {over}."
            plots[key] = interval_plot([(titles[name], mean_interval(v, over)) for name, v in known.items()], title, about)
    curves = {titles[name]: [(ta, ia) for _, ta, ia in row.curve if not math.isnan(ta)] for name, row in rows.items()}
    if any(len(curve) > 1 for curve in curves.values()):
        about = "Each method at several strengths of what it learned, one seed; further up and to the right is better."
        plots["curves"] = curve_plot(curves, "Identity against obedience", about, "TA", "IA")
    return plots


def _cells(name: str, found: Mapping[str, Any]) -> list[str]:
    """The figures of a method as the cells of its row, empty where one is not known."""
    values = [found.get(f"{name}_{key}") for key in ("ia", "ia_low", "ia_high", "ta", "ta_low", "ta_high", "ims", "forgetting")]
    values += [found.get(f"{name}_{key}") for key in ("ia_spread_of_seeds", "parts", "parts_low", "parts_high")]
    return ["" if v is None or math.isnan(v) else f"{v:.3f}" for v in values]


def _ahead(titles: Mapping[str, str], found: Mapping[str, Any]) -> list[Section]:
    """The section that compares the default with each method that it was compared with; none if there is no such method."""
    about = "How much higher the default's IA is: in pairs of concept and seed, and where its strength is such that TA is no less."
    heads = ("default ahead of", "in IA", "at its TA", "least on its curve")
    margins = {name: [found.get(key.format(name)) for key in AHEAD] for name in titles if AHEAD[0].format(name) in found}
    cells = [[titles[name], *("" if v is None else f"{v:+.3f}" for v in values)] for name, values in margins.items()]
    return [Section("At equal text alignment", about, None, heads, cells)] if cells else []


def _sheet(folder: Path, name: str, suite: Suite, seed: int) -> Image.Image | None:
    """A row per concept of a method's pictures."""
    files = {lesson.name: folder / "scores" / f"{name}-{seed}" / f"{lesson.name}.png" for lesson in suite.lessons}
    if not all(file.exists() for file in files.values()):
        return None
    rows = []
    for concept, file in files.items():
        strip = np.asarray(open_picture(file))
        tiles = torch.from_numpy(strip.copy()).unflatten(1, (-1, strip.shape[0])).permute(1, 3, 0, 2)[:SHOWN]
        rows.append((concept, tiles.float() / 127.5 - 1))
    return contact_sheet(rows, side=96, label=110)
