"""Two concepts from one picture, on Doodle: what attention calibration does beside a plain joint run, and what masks do.

Every run is kept in a folder, banks and scores, and a benchmark that was stopped goes on from there.
"""

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...bank.bank import Bank
from ...bank.files import write_atomically
from ...bank.formats import write_array, write_picture
from ...doodle.concepts import CONCEPTS
from ...doodle.world import IN_PLACE, Scene, arrange, render
from ...evaluation.doodle import GUIDANCE, PLACES, RECIPE, SEED, DoodleBench, scene, training_pictures
from ...measure.presence import Presence
from ...measure.report import contact_sheet, from_pixels
from ...measure.scores import alignments, caption_cosines, clip_scores, embed
from ...models.sd import DOODLE
from ...painting.paint import SamplingConfig, paint, unit_noise
from ...training.dataset import Dataset
from ...training.method import Task
from ...training.methods import configure_for
from ...training.task import learn_into
from ...training.together import Masks, cut_outs, learn_together
from .compositions import THINGS
from .scores import mean_between
from .timing import machine

log = logging.getLogger("cidm.bench")

PAIRS = (("dog2", "duck"), ("cat", "backpack"), ("dog", "cat2"), ("bear", "dog2"), ("backpack", "duck"), ("cat2", "bear"))
SHOT_IN = ("meadow", "snow", "beach", "street", "forest", "night")  # where the pair of that number stands in its one picture
WITH_MASKS = ("cut", "cut_anchor")
# What each row changes in the settings of the method, and whether it has masks; "six" learns each concept from its six own pictures.
ROWS: dict[str, Mapping[str, float]] = {
    "joint": {"calibration": 0.0},
    "calibrated": {},
    "printed": {"calibration": 1.0},
    "cut": {},
    "cut_anchor": {"anchor": 1.0},
    "six": {},
}
NOISES = 4  # pictures of each concept in each place
STEPS = 12  # of the sampler
SCORES = ("ia", "other", "ta", "present", "other_present", "place")


@dataclass(frozen=True)
class Shot:
    """The one picture of a pair: the dataset of it, with its caption, and a mask of each concept."""

    data: Dataset
    masks: Masks


def run(folder: Path = Path("runs/calibrate"), seeds: int = 3, rows: Sequence[str] = tuple(ROWS)) -> dict[str, Any]:
    """Learn six pairs from one picture each, by every row and training seed, and paint each concept alone in four places. ``ia``: likeness
    with held-out renderings; ``other``: with those of the other concept of the pair; ``ta``: text alignment; ``present`` and
    ``other_present``: how often the concept, or the other, is the nearest of Doodle's things; ``place``: how often the place is the
    nearest of all places. ``_low`` and ``_high``: the 95 % interval over pairs, concepts and seeds. ``<row>_over_joint_<score>``: the mean
    difference from the joint run of the same pair, concept and seed, with its interval.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    if unknown := [row for row in rows if row not in ROWS]:
        raise ValueError(f"row {unknown[0]!r}: expected one of {', '.join(ROWS)}")
    bench = Bench(folder)
    found: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    for seed in range(seeds):
        for number, pair in enumerate(PAIRS):
            for row in rows:
                found[row] += bench.scored(row, number, pair, seed)
    bench.sheet(rows)
    figures: dict[str, Any] = {}
    for row, scores in found.items():
        over = f"{len(scores)} concepts"
        for key in SCORES:
            figures |= mean_between(f"{row}_{key}", [score[key] for score in scores], over)
            if row != "joint" and "joint" in found:
                apart = [score[key] - plain[key] for score, plain in zip(scores, found["joint"], strict=True)]
                figures |= mean_between(f"{row}_over_joint_{key}", apart, over)
    return figures | {"seeds": seeds, "pairs": len(PAIRS)} | machine()


def shot_of(pair: tuple[str, str], place: str, number: int) -> Shot:
    """Draw the one picture that shows both."""
    rng = np.random.default_rng((number, 41))
    words = [CONCEPTS[name].class_word for name in pair]
    looks = [look for name in pair if (look := CONCEPTS[name].look)]
    picture, masks = render(Scene(arrange(looks, words, rng), place, seed=int(rng.integers(2**31))))
    caption = f"{words[0]} on the left and {words[1]} on the right {IN_PLACE[place][0]}"
    shown = from_pixels(picture[None])[0] / 2 + 0.5
    covered = {name: [torch.from_numpy(mask)[None].float() / 255] for name, mask in zip(pair, masks, strict=True)}
    return Shot(Dataset([shown], [caption], flip=True), covered)


class Bench:
    """Folder, model and judges of one run of the benchmark."""

    def __init__(self, folder: Path):
        self.folder, self.doodle = folder, DoodleBench()
        self.presence = Presence({name: self.doodle.references(name) for name in THINGS})
        folder.mkdir(parents=True, exist_ok=True)

    def learned(self, row: str, number: int, pair: tuple[str, str], seed: int) -> Bank:
        """Learn a pair as a row does."""
        bank, backbone = Bank(self.folder / f"{row}-{'-'.join(pair)}-{seed}"), self.doodle.backbone
        if row == "six":
            for name in pair:
                task = Task(name=name, class_word=CONCEPTS[name].class_word, config=RECIPE.update(seed=seed))
                bank = learn_into(bank, backbone, training_pictures(CONCEPTS[name]), task).bank
            return bank
        shot, (first, second) = shot_of(pair, SHOT_IN[number], number), pair
        config = configure_for(DOODLE, "disendiff", seed=seed, **ROWS[row])
        others = {second: CONCEPTS[second].class_word}
        task = Task(name=first, class_word=CONCEPTS[first].class_word, others=others, config=config)
        data = cut_outs(shot.data, shot.masks, inside="anchor" in ROWS[row]) if row in WITH_MASKS else shot.data
        return learn_together(bank, backbone, data, task)[-1].bank

    def scored(self, row: str, number: int, pair: tuple[str, str], seed: int) -> list[dict[str, float]]:
        """Return the scores of both concepts, kept in the folder with the pictures."""
        stem = f"{row}-{'-'.join(pair)}-{seed}"
        file = self.folder / f"{stem}.json"
        if not file.exists():
            bank, scores = self.learned(row, number, pair, seed), []
            for name, other in (pair, pair[::-1]):
                pictures = self.painted(bank, name)
                write_array(pictures[: len(PLACES)].numpy(), self.folder / f"{stem}-{name}.npy")
                scores.append(self.score(pictures, name, other))
            write_atomically(json.dumps(scores, indent=1).encode(), file)
            log.info("%s %s", stem, scores)
        return json.loads(file.read_text())

    def painted(self, bank: Bank, name: str) -> Tensor:
        """Paint a concept in all places, ``[places * NOISES, 3, 128, 128]``, places in turn."""
        noise = unit_noise(self.doodle.backbone.family, SEED, NOISES, 128, 128)
        config = SamplingConfig(STEPS, GUIDANCE)
        by_place = [paint(self.doodle.backbone, bank, scene(name, f"<{name}>", place), noise, config)[0] for place in PLACES]
        return torch.stack(by_place, 1).flatten(0, 1)

    @torch.no_grad()
    def score(self, pictures: Tensor, name: str, other: str) -> dict[str, float]:
        seen, read = embed(self.doodle.tower, pictures), embed(self.doodle.reader, pictures)
        said = [scene(name, CONCEPTS[name].class_word, place) for place in PLACES]
        captions = F.normalize(self.doodle.reader.captions(said), dim=-1)
        there = self.presence.found(seen)
        asked = list(range(len(PLACES))) * (len(pictures) // len(PLACES))
        placed = (read @ captions.T).argmax(1).tolist()
        return {
            "ia": float(alignments(seen, self.doodle.references(name)).mean()),
            "other": float(alignments(seen, self.doodle.references(other)).mean()),
            "ta": float(clip_scores(caption_cosines(read, captions[asked])).mean()),
            "present": there.count(name) / len(there),
            "other_present": there.count(other) / len(there),
            "place": statistics.mean(float(a == b) for a, b in zip(placed, asked, strict=True)),
        }

    def sheet(self, rows: Sequence[str]) -> None:
        """Of the first seed, both concepts of the first three pairs in all places, a line for each row; nothing is chosen."""
        lines = []
        for number, pair in enumerate(PAIRS[:3]):
            lines.append(
                (f"the picture: {' and '.join(pair)}", torch.stack(list(shot_of(pair, SHOT_IN[number], number).data.pictures)) * 2 - 1)
            )
            for row in rows:
                arrays = [np.load(self.folder / f"{row}-{'-'.join(pair)}-0-{name}.npy") for name in pair]
                lines.append((row.replace("_", ", "), torch.from_numpy(np.concatenate(arrays))))
        write_picture(contact_sheet(lines, label=170), self.folder / "sheet.png")
