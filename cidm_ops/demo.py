"""The demo: three Doodle concepts learned one after the other, painted alone and together, scored and shown."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .backbone import Backbone
from .bank.bank import Bank
from .doodle.concepts import CONCEPTS, Example, examples
from .doodle.tower import DoodleTower
from .engines.diffusers import load
from .measure.report import contact_sheet, write_html
from .measure.scores import ImageTower, embed, image_alignment, self_alignment
from .run.dataset import Dataset
from .run.painting import paint, unit_noise
from .run.recipe import Recipe
from .run.task import learn_into

log = logging.getLogger("cidm.demo")

LEARNED = ("dog", "duck", "cat")
PLACES = ("on the beach", "in the snow", "in a meadow", "on the street")
TOGETHER = "a {0} on the left, a {1} in the middle and a {2} on the right"
HELD_OUT, SEED = 16, 1000
# Chosen on Doodle: the world's places are in the pictures, so the whole picture is learned, and guidance stays low.
RECIPE = Recipe(steps=350, batch=4, lr=4e-3, lr_tokens=1e-2, norm_stop=2.0)
GUIDANCE = 2.0


@dataclass
class Score:
    """Image alignment of a concept: after the last task, right after its own, of the plain class word, and the ceiling."""

    name: str
    ia: float
    ia_plain: float
    ia_ceiling: float
    ia_first: float


def run(folder: Path, seeds: int = 2) -> list[Score]:
    """Learn, paint, score; write ``report.json``, ``report.html``, ``contact-sheet.png`` and the bank into ``folder``."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    backbone, tower = load("doodle"), DoodleTower()
    bank = Bank(folder / "bank")
    for name in bank.names:
        bank.file(name).unlink()
    bank = Bank(folder / "bank")
    references, plain, first, rows = {}, {}, {}, []
    for name in LEARNED:
        concept = CONCEPTS[name]
        shown = examples(concept, 6)
        references[name] = embed(tower, pictured(examples(concept, HELD_OUT, seed=1)))
        rows.append((f"{name}: the six pictures", pictured(shown)))
        training = Dataset(list(pictured(shown) / 2 + 0.5), [e.caption for e in shown])
        bank, _, losses = learn_into(bank, backbone, training, name=name, class_word=concept.class_word, recipe=RECIPE)
        log.info("learned %s in %.0f s, loss %.3f", name, time.monotonic() - began, sum(losses[-50:]) / 50)
        ordinary = portraits(backbone, bank, concept.class_word, seeds)
        rows.append((f"plain “{concept.class_word}”", ordinary[:6]))
        plain[name] = alignment(tower, ordinary, references[name])
        first[name] = alignment(tower, portraits(backbone, bank, f"<{name}>", seeds), references[name])
    scores = []
    for name in LEARNED:
        pictures = portraits(backbone, bank, f"<{name}>", seeds)
        scores.append(Score(name, alignment(tower, pictures, references[name]), plain[name], self_alignment(references[name]), first[name]))
        rows.insert(3 * len(scores) - 1, (f"<{name}> after all three", pictures[:6]))
    prompt = TOGETHER.format(*(f"<{name}>" for name in LEARNED))
    rows.append(("all together", paint(backbone, bank, prompt, unit_noise(SEED, 6, 128, 128), guidance=GUIDANCE)[0]))
    report(folder, scores, rows, time.monotonic() - began)
    return scores


def portraits(backbone: Backbone, bank: Bank, subject: str, seeds: int) -> Tensor:
    """``subject`` in every place, ``seeds`` pictures each, ``[places * seeds, 3, 128, 128]``, places in turn."""
    by_place = [paint(backbone, bank, f"a {subject} {place}", unit_noise(SEED, seeds, 128, 128), guidance=GUIDANCE)[0] for place in PLACES]
    return torch.stack(by_place, 1).flatten(0, 1)


def pictured(shown: list[Example]) -> Tensor:
    """Renderings as pictures ``[N, 3, 128, 128]`` in [-1, 1]."""
    return torch.from_numpy(np.stack([e.picture for e in shown])).permute(0, 3, 1, 2).float() / 127.5 - 1


def alignment(tower: ImageTower, pictures: Tensor, references: Tensor) -> float:
    return image_alignment(embed(tower, pictures), references)


def report(folder: Path, scores: list[Score], rows: list[tuple[str, Tensor]], seconds: float) -> None:
    """Write the figures and the pictures."""
    figures = {
        "seconds": round(seconds, 1),
        "concepts": [{k: v if isinstance(v, str) else round(v, 4) for k, v in vars(s).items()} for s in scores],
    }
    (folder / "report.json").write_text(json.dumps(figures, indent=2))
    sheet = contact_sheet(rows)
    sheet.save(folder / "contact-sheet.png")
    table = [
        [s.name, s.ia_plain, s.ia_first, s.ia, s.ia_ceiling, f"{100 * (s.ia - s.ia_plain) / (s.ia_ceiling - s.ia_plain):.0f} %"]
        for s in scores
    ]
    columns = ("concept", "plain class word", "right after learning", "after all three", "ceiling", "distance closed")
    note = "Image alignment: mean cosine of pictures with held-out renderings of the concept. Ceiling: the renderings among themselves."
    write_html(folder / "report.html", "CIDM demo: three concepts, one after the other", sheet, columns, table, note)
