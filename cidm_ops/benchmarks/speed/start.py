"""Words that begin as those of the nearest concept of the bank (``start=nearest``), beside words that begin as the class word: how like the
thing is after all steps and after half of them. Resumable.
"""

import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ...bank.bank import Bank
from ...bank.concept_file import load_concept
from ...doodle.concepts import DoodleConcept, examples, instance
from ...doodle.files import TEN
from ...evaluation.doodle import GUIDANCE, HELD_OUT, PICTURES, PLACES, RECIPE, SEED, DoodleBench, pictured
from ...grammar import article
from ...measure.presence import Presence
from ...measure.scores import alignments, caption_cosines, clip_scores, embed
from ...painting.paint import SamplingConfig, paint, unit_noise
from ...training.dataset import Dataset
from ...training.method import Task
from ...training.task import learn_into
from .compositions import THINGS
from .scores import kept_scores, mean
from .timing import machine

log = logging.getLogger("cidm.bench")

KINDS = ("dog", "cat", "duck", "backpack", "teddy bear")  # of which the ten have one or two
NOISES = 2  # pictures in each place
LEAST = -0.01  # of the likeness at half of the steps, beside all of them
ROWS: dict[str, Mapping[str, object]] = {
    "full": {},
    "half": {"steps": RECIPE.steps // 2},
    "nearest": {"start": "nearest"},
    "nearest_half": {"start": "nearest", "steps": RECIPE.steps // 2},
}


def run(folder: Path = Path("runs/start"), seeds: int = 3, rows: Sequence[str] = tuple(ROWS)) -> dict[str, Any]:
    """Learn a new individual of five classes into a bank that has Doodle's ten, ``seeds`` of each, by each row: ``ia`` is its likeness,
    ``ta`` the text alignment, ``present`` the share of pictures that are nearest to it out of the ten and itself, and ``mates`` the share
    that is nearest to another one of its class. ``<row>_over_full_ia`` is the mean difference for the same individual, ``_interval`` half
    its 95 % interval, and ``halves`` says whether ``nearest_half`` is at most 0.01 below ``full``. ``began`` says how often words began as
    those of another concept. Raises ``ValueError`` for a row that there is none of.
    """
    if unknown := [row for row in rows if row not in ROWS]:
        raise ValueError(f"row {unknown[0]!r}: expected some of {', '.join(ROWS)}")
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    folder.mkdir(parents=True, exist_ok=True)
    bench, individuals = DoodleBench(), [instance(kind, 300 + seed) for seed in range(seeds) for kind in KINDS]
    tasks = {f"{row} {one.name}": (one, row) for one in individuals for row in rows}
    scores = kept_scores(folder / "scores.json", tasks, lambda key: learn(bench, folder / "banks" / key.replace(" ", "-"), *tasks[key]))
    figures = summarise({row: [scores[f"{row} {one.name}"] for one in individuals] for row in rows})
    return figures | {"individuals": len(individuals), "steps": RECIPE.steps} | machine()


def summarise(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """The mean of every score of each row, and what the likeness of a row is over that of ``full``."""
    figures: dict[str, Any] = {}
    for row, own in scores.items():
        figures |= {f"{row}_{name}": round(statistics.mean(score[name] for score in own), 4) for name in own[0]}
        if row != "full" and "full" in scores:
            figures |= mean(f"{row}_over_full_ia", [a["ia"] - b["ia"] for a, b in zip(own, scores["full"], strict=True)])
    if "nearest_half_over_full_ia" in figures:
        figures["halves"] = figures["nearest_half_over_full_ia"] >= LEAST
    return figures


def learn(bench: DoodleBench, place: Path, one: DoodleConcept, row: str) -> dict[str, float]:
    """Learn an individual by a row after Doodle's ten, paint it in every place, and score its pictures."""
    bank = Bank(place)
    if not bank.names:
        bank = bank.add(*sorted(map(load_concept, TEN.glob("*.safetensors")), key=lambda concept: concept.task))
    shown = examples(one, PICTURES)
    data = Dataset(list(pictured(shown) / 2 + 0.5), [example.caption for example in shown])
    task = Task(name=one.name, class_word=one.class_word, config=RECIPE.update(**ROWS[row]))
    bank, concept, *_ = learn_into(bank, bench.backbone, data, task)
    noise, config = unit_noise(bench.backbone.family, SEED, NOISES, 128, 128), SamplingConfig(guidance=GUIDANCE)
    pictures = torch.cat([paint(bench.backbone, bank, f"a <{one.name}> {where}", noise, config)[0] for where in PLACES])
    captions = F.normalize(bench.reader.captions([f"{article(one.class_word)} {where}" for where in PLACES]), dim=-1)
    own = embed(bench.tower, pictured(examples(one, HELD_OUT, seed=1)))
    seen, mates = embed(bench.tower, pictures), [name for name in THINGS if bank.headers[name]["class_word"] == one.class_word]
    found = Presence({name: bench.references(name) for name in THINGS} | {one.name: own}).found(seen)
    read = caption_cosines(embed(bench.reader, pictures), captions.repeat_interleave(NOISES, 0))
    return {
        "ia": round(float(alignments(seen, own).mean()), 4),
        "ta": round(float(clip_scores(read).mean()), 4),
        "present": found.count(one.name) / len(found),
        "mates": sum(name in mates for name in found) / len(found),
        "began": float("began_as" in concept.training),
    }
