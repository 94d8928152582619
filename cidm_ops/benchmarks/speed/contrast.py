"""Two concepts of one class on Doodle: does contrast of their words keep them from being confused, beside plain training and its variants.

Every run is kept in a folder, banks and scores, and a benchmark that was stopped goes on from there.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...bank.bank import Bank
from ...bank.files import write_atomically
from ...bank.formats import write_array, write_picture
from ...doodle.concepts import CONCEPTS, DoodleConcept, examples, instance
from ...evaluation.contrast import contrast_by
from ...evaluation.doodle import GUIDANCE, HELD_OUT, PLACES, SEED, DoodleBench, pictured, training_pictures
from ...measure.presence import Presence
from ...measure.report import contact_sheet
from ...measure.scores import alignments, caption_cosines, clip_scores, embed
from ...method.contrast import found_right
from ...models.sd import DOODLE
from ...painting.paint import SamplingConfig, paint, unit_noise
from ...tokens import encode_layerwise, positions_of
from ...training.canvases import Lesson
from ...training.contrasting import ContrastConfig, contrast_into
from ...training.method import Task
from ...training.methods import configure_for
from ...training.spaces import CaptionSide, Contrast, mean_rows
from ...training.task import learn_into
from .scores import mean_between
from .timing import machine

log = logging.getLogger("cidm.bench")

KINDS = ("duck", "backpack", "teddy bear", "car", "house", "tree")  # of the pairs that are drawn from a seed
PAIRS: tuple[tuple[str, str], ...] = (("dog", "dog2"), ("cat", "cat2"), *((f"{kind}-1", f"{kind}-2") for kind in KINDS))


@dataclass(frozen=True)
class Row:
    """A way to learn a pair: by a method with some settings, after contrast or not."""

    method: str = "cidm"
    settings: Mapping[str, Any] | None = None
    contrasted: bool = False


REACH = {"reach": "words and end"}
ROWS: dict[str, Row] = {
    "default": Row(),
    "nearest": Row(settings={"start": "nearest"}),
    "reach": Row(settings=REACH),
    "contrast": Row(contrasted=True),
    "term": Row("clif"),
    "contrast_term": Row("clif", contrasted=True),
    "contrast_reach": Row(settings=REACH, contrasted=True),
}
NOISES = 4  # pictures of each prompt
STEPS = 12  # of the sampler
SCORES = ("mates", "present", "mate_there", "ta", "ia")


def run(folder: Path = Path("runs/contrast"), seeds: int = 3, rows: Sequence[str] = tuple(ROWS)) -> dict[str, Any]:
    """Learn eight pairs of one class by every row and training seed. ``retrieval``: how often a held-out rendering is nearest to the text
    of its own concept, of all sixteen, in the image tower's space; ``mates``: cosine of the states of both concepts' words; of pictures
    with both, without regions, ``present``: how often the concept that was asked for on a side is the nearest of all there, ``mate_there``:
    how often the other one of the pair is, and ``ta``: text alignment; ``ia``: likeness of each alone. ``_low`` and ``_high``: the 95 %
    interval over pairs and seeds. ``<row>_over_default_<score>``: the mean difference from plain training of the same pair and seed, with
    its interval.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    if unknown := [row for row in rows if row not in ROWS]:
        raise ValueError(f"row {unknown[0]!r}: expected one of {', '.join(ROWS)}")
    bench = Bench(folder)
    found: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    retrieved: dict[str, list[float]] = {row: [] for row in rows}
    for seed in range(seeds):
        for row in rows:
            found[row] += [bench.scored(row, pair, seed) for pair in PAIRS]
            retrieved[row].append(bench.retrieval(row, seed))
    bench.sheet(rows)
    figures: dict[str, Any] = {}
    for row, scores in found.items():
        over = f"{len(scores)} pairs"
        figures[f"{row}_retrieval"] = round(sum(retrieved[row]) / seeds, 4)
        for key in SCORES:
            figures |= mean_between(f"{row}_{key}", [score[key] for score in scores], over)
            if row != "default" and "default" in found:
                apart = [score[key] - plain[key] for score, plain in zip(scores, found["default"], strict=True)]
                figures |= mean_between(f"{row}_over_default_{key}", apart, over)
    return figures | {"seeds": seeds, "pairs": len(PAIRS)} | machine()


def concept_named(name: str) -> DoodleConcept:
    """One of Doodle's ten, or an individual ``<kind>-<seed>`` under that name."""
    if name in CONCEPTS:
        return CONCEPTS[name]
    kind, _, seed = name.rpartition("-")
    return replace(instance(kind, int(seed)), name=handle(name))


def handle(name: str) -> str:
    """The name of a concept in a bank: "teddybear-1" for a teddy bear."""
    return name.replace(" ", "")


class Bench:
    """Folder, model and judges of one run of the benchmark."""

    def __init__(self, folder: Path):
        self.folder, self.doodle = folder, DoodleBench()
        self.concepts = {handle(name): concept_named(name) for pair in PAIRS for name in pair}
        folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def renderings(self) -> dict[str, Tensor]:
        """Embeddings ``[HELD_OUT, E]`` of renderings that no training sees, by name."""
        drawn = {name: pictured(examples(concept, HELD_OUT, seed=1)) for name, concept in self.concepts.items()}
        return {name: embed(self.doodle.tower, pictures) for name, pictures in drawn.items()}

    @cached_property
    def by(self) -> Contrast:
        return contrast_by(self.doodle.backbone)

    def learned(self, row: str, pair: tuple[str, str], seed: int) -> Bank:
        """Learn a pair as a row does, one after the other."""
        how, backbone = ROWS[row], self.doodle.backbone
        names = [handle(name) for name in pair]
        bank = Bank(self.folder / f"{row}-{'-'.join(names)}-{seed}")
        lessons = [Lesson(n, self.concepts[n].class_word, training_pictures(self.concepts[n], masked=True)) for n in names]
        if how.contrasted:
            bank = contrast_into(bank, backbone, self.by, lessons, ContrastConfig.suiting(DOODLE, seed=seed)).bank
        config = configure_for(DOODLE, how.method, seed=seed, **(how.settings or {}))
        for lesson in lessons:
            data = training_pictures(self.concepts[lesson.name], masked=how.method == "clif")
            data = replace(data, masks=[None] * len(data)) if how.method != "clif" else data
            task = Task(name=lesson.name, class_word=lesson.class_word, config=config, existing="continue", contrast=self.by)
            bank = learn_into(bank, backbone, data, task).bank
        return bank

    def scored(self, row: str, pair: tuple[str, str], seed: int) -> dict[str, float]:
        """Return the scores of a pair, kept in the folder with its pictures."""
        stem = f"{row}-{'-'.join(map(handle, pair))}-{seed}"
        file = self.folder / f"{stem}.json"
        if not file.exists():
            bank = self.learned(row, pair, seed)
            names = [handle(name) for name in pair]
            both = self.painted(bank, f"a <{names[0]}> on the left and a <{names[1]}> on the right", 256)
            alone = {name: self.painted(bank, f"a <{name}>", 128) for name in names}
            write_array(both[: len(PLACES)].numpy(), self.folder / f"{stem}.npy")
            scores = self.score(names, both, alone) | {"mates": self.mates(bank, names)}
            write_atomically(json.dumps(scores, indent=1).encode(), file)
            log.info("%s %s", stem, scores)
        return json.loads(file.read_text())

    def painted(self, bank: Bank, subject: str, width: int) -> Tensor:
        """Paint a subject in all places, ``[places * NOISES, 3, 128, width]``, places in turn."""
        noise = unit_noise(self.doodle.backbone.family, SEED, NOISES, 128, width)
        config = SamplingConfig(STEPS, GUIDANCE)
        by_place = [paint(self.doodle.backbone, bank, f"{subject} {place}", noise, config)[0] for place in PLACES]
        return torch.stack(by_place, 1).flatten(0, 1)

    @torch.no_grad()
    def score(self, names: Sequence[str], both: Tensor, alone: Mapping[str, Tensor]) -> dict[str, float]:
        """Score pictures of both concepts side by side and of each alone."""
        presence = Presence(self.renderings)
        there = [presence.found(embed(self.doodle.tower, half)) for half in (both[..., :128], both[..., 128:])]
        right = [there[i].count(names[i]) / len(both) for i in (0, 1)]
        other = [there[i].count(names[1 - i]) / len(both) for i in (0, 1)]
        plain = [self.concepts[name].class_word for name in names]
        said = [f"a {plain[0]} on the left and a {plain[1]} on the right {place}" for place in PLACES]
        captions = F.normalize(self.doodle.reader.captions(said), dim=-1)
        asked = list(range(len(PLACES))) * (len(both) // len(PLACES))
        alike = [alignments(embed(self.doodle.tower, pictures), self.renderings[name]).mean() for name, pictures in alone.items()]
        return {
            "present": sum(right) / 2,
            "mate_there": sum(other) / 2,
            "ta": float(clip_scores(caption_cosines(embed(self.doodle.reader, both), captions[asked])).mean()),
            "ia": float(torch.stack(alike).mean()),
        }

    @torch.no_grad()
    def mates(self, bank: Bank, names: Sequence[str]) -> float:
        """The cosine of the states of both concepts' words in "a <name>", the mean over layers and words."""
        states = []
        for concept in map(bank.get, names):
            text = f"a {' '.join(concept.words)}"
            positions = positions_of(self.doodle.backbone, text, concept.words)
            states.append(encode_layerwise(self.doodle.backbone, [text], concept.tables).context[0][:, positions])
        one, other = states
        return float(F.cosine_similarity(one, other, dim=-1).mean())

    @torch.no_grad()
    def retrieval(self, row: str, seed: int) -> float:
        """How often a held-out rendering is nearest to the text of its own concept, of all that the row learned."""
        space = self.by.spaces[0]
        side = CaptionSide(self.doodle.backbone, space)
        texts: dict[str, str] = {}
        rows: dict[str, Tensor] = {}
        for pair in PAIRS:
            bank = Bank(self.folder / f"{row}-{'-'.join(map(handle, pair))}-{seed}")
            for concept in map(bank.get, map(handle, pair)):
                texts[concept.name] = f"a photo of a {' '.join(concept.words)}"
                rows |= mean_rows(concept, space.encoder)
        said = side(list(texts.values()), rows)
        right = [found_right(seen, said, [name] * len(seen), list(texts)).mean() for name, seen in self.renderings.items()]
        return float(torch.stack(right).mean())

    def sheet(self, rows: Sequence[str]) -> None:
        """Of the first seed, every pair side by side in all places, a line for each row; nothing is chosen."""
        lines = []
        for pair in PAIRS[:3]:
            stem = "-".join(map(handle, pair))
            for row in rows:
                pictures = torch.from_numpy(np.load(self.folder / f"{row}-{stem}-0.npy"))
                lines.append((f"{' and '.join(pair)}: {row.replace('_', ', ')}", torch.cat(pictures.chunk(2, -1))))
        write_picture(contact_sheet(lines, label=230), self.folder / "sheet.png")
