"""What an evaluation comes to: the paper's table, the same as JSON, and a report."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bank.files import write_atomically
from ..engines.parts import PARTS
from ..measure.diversity import diversity
from ..measure.forgetting import ForgettingScore, score_forgetting
from ..measure.presence import PresenceScore, area_under_curve, collapses, score_presence
from ..measure.report import Section, write_html
from ..measure.scores import ImageAlignment, TextAlignment, align_images, align_texts, mean_over
from ..measure.sections import forgetting_section, image_section, presence_section, text_section
from ..text_table import text_table
from .parts import PartsScore
from .protocol import Embeddings, EvaluationTask, Samples, files_of

AVERAGED = ("ia", "ta", "ims", "collapsed")
BLIND = 0.9  # area under the curve below which a tower's figures are not worth reading


@dataclass(frozen=True)
class ConceptScores:
    """The scores of the pictures of one concept; ``text`` is None without a text side, ``diversity`` for a single picture."""

    image: ImageAlignment
    text: TextAlignment | None
    diversity: float | None


@dataclass(frozen=True)
class Scores:
    """The scores of an evaluation: ``concepts`` by name, in the order of its tasks; ``presence`` and what was forgotten, where there are
    several concepts or earlier evaluations; ``words``, how well the text side tells classes apart.
    """

    concepts: Mapping[str, ConceptScores]
    presence: PresenceScore | None
    forgotten: ForgettingScore | None
    words: float


def score(tasks: Sequence[EvaluationTask], seen: Mapping[str, Embeddings], earlier: Sequence[Mapping[str, float]] = ()) -> Scores:
    """Scores every concept's pictures; ``earlier`` are image alignments by concept after earlier tasks, in order."""
    concepts = {}
    for task in tasks:
        s = seen[task.name]
        text = align_texts(s.shown, s.captions) if len(s.captions) else None
        varied = diversity(s.pictures) if len(s.pictures) > 1 else None
        concepts[task.name] = ConceptScores(align_images(s.pictures, s.references), text, varied)
    presence = None
    if len(tasks) > 1:
        expected = [task.name for task in tasks for _ in seen[task.name].pictures]
        references = {task.name: seen[task.name].references for task in tasks}
        presence = score_presence(references, torch.cat([seen[task.name].pictures for task in tasks]), expected)
    last = {name: one.image.mean.value for name, one in concepts.items()}
    forgotten = score_forgetting([*earlier, last]) if earlier else None
    return Scores(concepts, presence, forgotten, words_told_apart(tasks, seen))


def figures(scores: Scores, parts: Mapping[str, PartsScore] | None = None) -> dict[str, Any]:
    """Tell IA, TA and IMS with their intervals, the ceiling, presence, collapses and diversity by concept and as means, and what the
    encoders can tell apart; with ``parts``, identity by parts of the concepts that have any.
    """
    parts = parts or {}
    concepts: dict[str, dict[str, Any]] = {}
    for name, one in scores.concepts.items():
        ia, pictures = one.image.mean, len(one.image.values)
        row: dict[str, Any] = {"ia": ia.value, "ia_interval": [ia.low, ia.high], "pictures": pictures}
        if one.text:
            ta = one.text.mean
            row |= {"ta": ta.value, "ta_interval": [ta.low, ta.high], "cosine": float(one.text.cosines.mean())}
        ims = one.image.matching
        row |= {"ims": ims.value, "ims_interval": [ims.low, ims.high]}
        if not math.isnan(one.image.ceiling):
            row["ceiling"] = one.image.ceiling
        if presence := scores.presence:
            row["present"] = sum(have == want == name for have, want in zip(presence.found, presence.expected, strict=True)) / pictures
            if presence.bound is not None:
                mine = torch.tensor([want == name for want in presence.expected])
                row["collapsed"] = float(collapses(presence.own[mine], presence.bound).mean())
        if one.diversity is not None:
            row["diversity"] = one.diversity
        if name in parts:
            mean = parts[name].mean
            row |= {"parts": mean.value, "parts_interval": [mean.low, mean.high], "parts_right": parts[name].parts}
        concepts[name] = row
    shared = (key for key in AVERAGED if all(key in c for c in concepts.values()))
    means = {key: statistics.mean(c[key] for c in concepts.values()) for key in shared}
    if parts:  # styles have none
        means["parts"] = statistics.mean(one.mean.value for one in parts.values())
    apart = scores.presence.told_apart if scores.presence else math.nan
    found = {"concepts": concepts, "mean": means, "references_told_apart": apart, "words_told_apart": scores.words}
    if scores.presence and scores.presence.bound is not None:
        found["collapse_bound"] = scores.presence.bound
    if lost := scores.forgotten:
        found["forgetting"] = dict(zip(lost.names, lost.lost.tolist(), strict=True))
    return found


def words_told_apart(tasks: Sequence[EvaluationTask], seen: Mapping[str, Embeddings]) -> float:
    """How often a picture lies nearer to a caption of its own than to one of another concept's class: 0.5 is chance; nan without words."""
    own: list[Tensor] = []
    other: list[Tensor] = []
    for task in tasks:
        for rival in tasks:
            s, r = seen[task.name], seen[rival.name]
            if len(s.captions) and (task.name == rival.name or task.class_word != rival.class_word):
                cosines = s.meant @ r.captions.unique(dim=0).T
                (own if task.name == rival.name else other).append(cosines.flatten())
    return area_under_curve(torch.cat(own), torch.cat(other)) if own and other else float("nan")


def doubts(found: Mapping[str, Any], note: str = "") -> str:
    """Say what the figures cannot mean: where the tower does not tell pictures or words apart, and what the user says of them."""
    lines = [note] if note else []
    if (auc := found["references_told_apart"]) < BLIND:
        lines.append(
            f"This image tower hardly tells references of one concept from those of another (area under the curve {auc:.2f}; 0.5 is "
            "chance): its IA and presence say little."
        )
    if (auc := found["words_told_apart"]) < 0.6:
        lines.append(f"Its text side does not tell classes apart (area under the curve {auc:.2f}; 0.5 is chance): its TA says nothing.")
    return "\n".join(lines)


def table(found: Mapping[str, Any]) -> str:
    """The paper's form: a row per score, a column per concept in the order learned and the mean, times 100."""
    names = list(found["concepts"])
    rows = [["", *(f"V{i + 1} {name}" for i, name in enumerate(names)), "avg."]]
    for key, label in (("ia", "IA"), ("ta", "TA"), ("ims", "IMS"), ("parts", "parts")):
        if key in found["mean"]:
            values = [*(found["concepts"][name].get(key) for name in names), found["mean"][key]]
            rows.append([label, *("-" if value is None else f"{100 * value:.1f}" for value in values)])
    return text_table(rows)


@dataclass(frozen=True)
class Report:
    """A report adds to an evaluation's scores the settings it is ``about``, ``more`` sections, the user's ``note``, and identity by
    ``parts`` of the concepts that a judge of parts knows.
    """

    about: Mapping[str, Any]
    more: Sequence[Section] = ()
    note: str = ""
    parts: Mapping[str, PartsScore] = field(default_factory=dict)


def write(
    folder: Path,
    tasks: Sequence[EvaluationTask],
    seen: Mapping[str, Embeddings],
    seeds: Sequence[int],
    report: Report,
    earlier: Sequence[tuple[str, Mapping[str, float]]] = (),
) -> dict[str, Any]:
    """Writes ``scores.json``, ``table.txt`` and ``report.html``; ``earlier`` are scores of evaluations after earlier tasks, by name."""
    scores = score(tasks, seen, [points for _, points in earlier])
    found = figures(scores, report.parts)
    doubt = doubts(found, report.note)
    said = {"doubts": doubt.split("\n")} if doubt else {}
    write_atomically(json.dumps(_plain({**report.about, **found, **said}), indent=1).encode(), folder / "scores.json")
    write_atomically((table(found) + "\n" + doubt + "\n").encode(), folder / "table.txt")
    sections = sections_of(folder, tasks, seeds, scores, [*(name for name, _ in earlier), folder.name])
    if report.parts:
        sections.append(parts_section(report.parts))
    described = ", ".join(f"{key} {value}" for key, value in report.about.items() if isinstance(value, str | int | float))
    write_html(folder / "report.html", f"Evaluation of {len(tasks)} concepts", [*sections, *report.more], described, doubt)
    return found


def parts_section(parts: Mapping[str, PartsScore]) -> Section:
    """Shows which parts of each concept are right; a cell is empty for a part that a concept does not have."""
    about = (
        "How often a judge of parts reads off flat pictures what makes each concept this individual; where its class is not there, never."
    )
    rows = [
        [name, *(one.parts.get(part, "") for part in PARTS), one.mean.value, one.mean.low, one.mean.high] for name, one in parts.items()
    ]
    columns = ("concept", *(part.replace("_", " ") for part in PARTS), "all", "low", "high")
    return Section("Identity by parts", about, mean_over([one.mean for one in parts.values()], "concept"), columns, rows)


def sections_of(
    folder: Path, tasks: Sequence[EvaluationTask], seeds: Sequence[int], scores: Scores, points: Sequence[str]
) -> list[Section]:
    """The report's sections; ``points`` name the evaluations of the sequence, this one last."""
    listed = [(file, task.caption(template)) for task in tasks for file, template in files_of(folder, task, seeds)]
    shown, captions = Samples([file for file, _ in listed]), [caption for _, caption in listed]
    images = {name: one.image for name, one in scores.concepts.items()}
    texts = {name: one.text for name, one in scores.concepts.items() if one.text}
    sections = [image_section(images, shown, [task.references[0] for task in tasks])]
    if len(texts) == len(images):
        sections.append(text_section(texts, shown, captions))
    if scores.presence:
        sections.append(presence_section(scores.presence, shown))
    if scores.forgotten:
        sections.append(forgetting_section(scores.forgotten, points))
    return sections


def _plain(value: Any) -> Any:
    """Make figures plain for JSON: six decimals, None for nan."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return (None if value != value else round(value, 6)) if isinstance(value, float) else value
