"""What an evaluation comes to: the paper's table, the same as JSON, and a report."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bank.files import write_atomically
from ..measure.diversity import diversity
from ..measure.forgetting import forgetting, matrix
from ..measure.interval import mean_interval, several
from ..measure.presence import Presence, area_under_curve, separation
from ..measure.report import Section, write_html
from ..measure.scores import alignments, caption_cosines, clip_scores, self_alignment
from ..measure.sections import forgetting_section, image_section, presence_section, text_section
from .protocol import Samples, Seen, Task, files_of

BLIND = 0.9  # area under the curve below which a tower's figures are not worth reading


def figures(tasks: Sequence[Task], seen: Mapping[str, Seen]) -> dict[str, Any]:
    """By concept and as means: IA and TA with their intervals, the ceiling, presence, diversity; and what the tower can tell apart."""
    concepts: dict[str, dict[str, Any]] = {}
    presence = Presence({name: s.references for name, s in seen.items()}) if len(seen) > 1 else None
    for task in tasks:
        s = seen[task.name]
        over = several(len(s.pictures), "picture")
        ia = mean_interval(alignments(s.pictures, s.references), over)
        one: dict[str, Any] = {"ia": ia.value, "ia_interval": [ia.low, ia.high], "pictures": len(s.pictures)}
        if len(s.captions):
            cosines = caption_cosines(s.shown, s.captions)
            ta = mean_interval(clip_scores(cosines), over)
            one |= {"ta": ta.value, "ta_interval": [ta.low, ta.high], "cosine": float(cosines.mean())}
        if len(s.references) > 1:
            one["ceiling"] = self_alignment(s.references)
        if presence:
            one["present"] = sum(name == task.name for name in presence.found(s.pictures)) / len(s.pictures)
        if len(s.pictures) > 1:
            one["diversity"] = diversity(s.pictures)
        concepts[task.name] = one
    means = {key: statistics.mean(c[key] for c in concepts.values()) for key in ("ia", "ta") if all(key in c for c in concepts.values())}
    found = {"concepts": concepts, "mean": means, "references_told_apart": separation({n: s.references for n, s in seen.items()})}
    return found | {"words_told_apart": words_told_apart(tasks, seen)}


def words_told_apart(tasks: Sequence[Task], seen: Mapping[str, Seen]) -> float:
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
    """What the figures cannot mean: where the tower does not tell pictures or words apart, and what the user says of them."""
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
    heads = [f"V{i + 1} {name}" for i, name in enumerate(names)] + ["avg."]
    rows = []
    for key, label in (("ia", "IA"), ("ta", "TA")):
        if key in found["mean"]:
            rows.append([label, *(f"{100 * found['concepts'][n][key]:.1f}" for n in names), f"{100 * found['mean'][key]:.1f}"])
    widths = [max(len(h), 5) for h in heads]
    lines = ["    " + "  ".join(h.rjust(w) for h, w in zip(heads, widths, strict=True))]
    lines += [row[0].ljust(4) + "  ".join(v.rjust(w) for v, w in zip(row[1:], widths, strict=True)) for row in rows]
    return "\n".join(lines)


def write(
    folder: Path,
    tasks: Sequence[Task],
    seen: Mapping[str, Seen],
    seeds: Sequence[int],
    about: Mapping[str, Any],
    earlier: Sequence[tuple[str, Mapping[str, float]]] = (),
    more: Sequence[Section] = (),
    note: str = "",
) -> dict[str, Any]:
    """``scores.json``, ``table.txt`` and ``report.html``; ``earlier`` are scores of evaluations after earlier tasks, by name."""
    found = figures(tasks, seen)
    points = [*(scores for _, scores in earlier), {name: c["ia"] for name, c in found["concepts"].items()}]
    if earlier:
        names, scores = matrix(points)
        found["forgetting"] = dict(zip(names, forgetting(scores).tolist(), strict=True))
    doubt = doubts(found, note)
    said = {"doubts": doubt.split("\n")} if doubt else {}
    write_atomically(json.dumps(_plain({**about, **found, **said}), indent=1).encode(), folder / "scores.json")
    write_atomically((table(found) + "\n" + doubt + "\n").encode(), folder / "table.txt")
    listed = [(file, task, template) for task in tasks for file, template in files_of(folder, task, seeds)]
    shown = Samples([file for file, _, _ in listed])
    who, captions = [task.name for _, task, _ in listed], [task.caption(template) for _, task, template in listed]
    embeddings = torch.cat([seen[t.name].pictures for t in tasks])
    references = {t.name: seen[t.name].references for t in tasks}
    sections = [
        image_section({t.name: (seen[t.name].pictures, references[t.name]) for t in tasks}, shown, [t.references[0] for t in tasks])
    ]
    if all(len(s.captions) for s in seen.values()):
        cosines = {t.name: caption_cosines(seen[t.name].shown, seen[t.name].captions) for t in tasks}
        sections.append(text_section(cosines, shown, captions))
    if len(tasks) > 1:
        sections.append(presence_section(Presence(references), references, embeddings, who, shown))
    if earlier:
        sections.append(forgetting_section(names, scores, [*(name for name, _ in earlier), folder.name]))
    described = ", ".join(f"{key} {value}" for key, value in about.items() if isinstance(value, str | int | float))
    write_html(folder / "report.html", f"Evaluation of {len(tasks)} concepts", [*sections, *more], described, doubt)
    return found


def _plain(value: Any) -> Any:
    """For JSON: six decimals, None for nan."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return (None if value != value else round(value, 6)) if isinstance(value, float) else value
