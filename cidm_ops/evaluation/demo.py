"""The demo: three Doodle concepts learned one after the other, painted alone and together, scored and shown."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..bank.bank import Bank
from ..bank.files import write_atomically
from ..bank.formats import write_picture
from ..doodle.concepts import CONCEPTS, examples
from ..measure.report import Section, contact_sheet, write_html
from ..measure.scores import self_alignment
from ..painting.paint import SamplingConfig, paint, unit_noise
from ..training.method import Task
from ..training.task import learn_into
from .doodle import GUIDANCE, PICTURES, RECIPE, SEED, DoodleBench, pictured, training_pictures

log = logging.getLogger("cidm.demo")

LEARNED = ("dog", "duck", "cat")
TOGETHER = "a {0} on the left, a {1} in the middle and a {2} on the right"


@dataclass
class Score:
    """Image alignment of a concept: after the last task, right after its own, of the plain class word, and the ceiling; and with a judge
    identity by parts, after the last task and of the plain class word.
    """

    name: str
    ia: float
    ia_plain: float
    ia_ceiling: float
    ia_first: float
    parts: float | None = None
    parts_plain: float | None = None


def run(folder: Path, bench: DoodleBench | None = None) -> list[Score]:
    """Learn, paint, score; write ``report.json``, ``report.html``, ``contact-sheet.png`` and the bank into ``folder``.

    ``bench`` is another Doodle than the one that ships, another tower or a judge of parts.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    bench = bench or DoodleBench()
    bank = Bank(folder / "bank")
    for name in bank.names:
        bank.file(name).unlink()
    bank = Bank(folder / "bank")
    plain, first, rows = dict[str, Tensor](), dict[str, float](), dict[str, list[tuple[str, Tensor]]]()
    for name in LEARNED:
        concept = CONCEPTS[name]
        task = Task(name=name, class_word=concept.class_word, config=RECIPE)
        bank, _, losses, _ = learn_into(bank, bench.backbone, training_pictures(concept), task)
        log.info("learned %s in %.0f s, loss %.3f", name, time.monotonic() - began, sum(losses[-50:]) / 50)
        ordinary = bench.paint(bank, name, concept.class_word)
        rows[name] = [(f"{name}: the six pictures", pictured(examples(concept, PICTURES))), (f"plain “{concept.class_word}”", ordinary[:6])]
        plain[name] = ordinary
        first[name] = bench.ia(name, bench.paint(bank, name, f"<{name}>"))
    scores = []
    for name in LEARNED:
        pictures = bench.paint(bank, name, f"<{name}>")
        ceiling, parts = self_alignment(bench.references(name)), (bench.parts(name, pictures), bench.parts(name, plain[name]))
        scores.append(Score(name, bench.ia(name, pictures), bench.ia(name, plain[name]), ceiling, first[name], *parts))
        rows[name].append((f"<{name}> after all three", pictures[:6]))
    prompt = TOGETHER.format(*(f"<{name}>" for name in LEARNED))
    noise = unit_noise(bench.backbone.family, SEED, 6, 128, 128)
    together = paint(bench.backbone, bank, prompt, noise, SamplingConfig(guidance=GUIDANCE))[0]
    report(folder, scores, [*(row for name in LEARNED for row in rows[name]), ("all together", together)], time.monotonic() - began)
    return scores


def report(folder: Path, scores: list[Score], rows: list[tuple[str, Tensor]], seconds: float) -> None:
    """Write the figures and the pictures."""
    figures = {
        "seconds": round(seconds, 1),
        "concepts": [
            {k: round(v, 4) if isinstance(v, float) else v for k, v in vars(s).items() if v is not None or not k.startswith("parts")}
            for s in scores
        ],
    }
    write_atomically(json.dumps(figures, indent=2).encode(), folder / "report.json")
    sheet = contact_sheet(rows)
    write_picture(sheet, folder / "contact-sheet.png")
    table: list[list[object]] = [
        [s.name, s.ia_plain, s.ia_first, s.ia, s.ia_ceiling, f"{100 * (s.ia - s.ia_plain) / (s.ia_ceiling - s.ia_plain):.0f} %"]
        for s in scores
    ]
    columns = ["concept", "plain class word", "right after learning", "after all three", "ceiling", "distance closed"]
    note = "Image alignment: mean cosine of pictures with held-out renderings of the concept. Ceiling: the renderings among themselves."
    if all(s.parts is not None for s in scores):
        columns += ["parts of the plain word", "parts after all three"]
        table = [[*row, s.parts_plain, s.parts] for row, s in zip(table, scores, strict=True)]
        note += " Parts: the share of what makes it this individual that a judge reads off the pictures."
    title = "CIDM demo: three concepts, one after the other"
    write_html(folder / "report.html", title, [Section("Likeness", note, columns=columns, rows=table, pictures=[sheet])])
