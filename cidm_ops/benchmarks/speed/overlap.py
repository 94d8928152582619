"""Scenes whose boxes overlap: whether each concept is in its place when the overlap is shared, and when the stronger region has it."""

import logging
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...bank.bank import Bank
from ...bank.formats import write_picture
from ...doodle.files import TEN
from ...doodle.world import SIZE
from ...engines.diffusers import load
from ...engines.doodle import DoodleTower
from ...evaluation.doodle import GUIDANCE
from ...measure.report import contact_sheet
from ...measure.scores import embed
from ...method.regions import RegionMask, box_mask
from ...painting.compose import AggregationConfig
from ...painting.config import REGION_OVERLAPS
from ...painting.paint import SamplingConfig, paint, unit_noise
from .compositions import Composition, compositions
from .scores import kept_scores, mean, presence_of_ten
from .timing import machine

log = logging.getLogger("cidm.bench")

STEPS = 12
OVERLAP = 0.3  # of a box's width
SHOWN = 6  # scenes on the sheet


def run(folder: Path = Path("runs/overlap"), scenes: int = 40) -> dict[str, Any]:
    """Paint scenes of two concepts whose boxes overlap by 30 % of their width, with the overlap ``shared`` and the ``strongest`` region's,
    and with boxes ``apart``. By way: ``present`` is the share of concepts that are the nearest of the ten, and of empty places, to what is
    in their half, ``bleed`` the share of foreign halves in which a concept is the nearest, ``ia`` the likeness in its half. ``_interval``:
    half the 95 % interval of the mean over scenes.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    folder.mkdir(parents=True, exist_ok=True)
    studio = Studio(folder)
    composed = [scene for scene in compositions(3 * scenes) if len(scene.names) == 2][:scenes]
    numbers = map(str, range(len(composed)))
    scores = kept_scores(folder / "scores.json", numbers, lambda key: studio.score(int(key), composed[int(key)]))
    figures: dict[str, Any] = {}
    for name in scores["0"]:
        figures |= mean(name, [score[name] for score in scores.values()])
    return figures | {"scenes": len(composed), "overlap": OVERLAP, "steps": STEPS, "guidance": GUIDANCE} | machine()


class Studio:
    """Doodle, its ten concepts, and who is where."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.backbone, self.bank, self.tower = folder, load("doodle"), Bank(TEN), DoodleTower()
        self.presence = presence_of_ten(self.tower)

    def score(self, number: int, scene: Composition) -> dict[str, float]:
        """Paint a scene each way, and score what is in either half."""
        found: dict[str, float] = {}
        rows = []
        for way in ("apart", *REGION_OVERLAPS):
            picture = self.paint(number, scene, way)
            rows.append((way, torch.stack(list(picture.chunk(2, 2)))))
            found |= {f"{way}_{key}": round(value, 4) for key, value in self.judge(scene, picture).items()}
        if number < SHOWN:
            write_picture(contact_sheet(rows, label=150), self.folder / f"sheet-{number}.png")
        return found

    def paint(self, number: int, scene: Composition, way: str) -> Tensor:
        """A picture ``[3, H, W]`` of a scene."""
        wide = 1 / (2 - OVERLAP) if way != "apart" else 0.5
        boxes = ((0.0, 0.05, wide, 1.0), (1 - wide, 0.05, 1.0, 1.0))
        regions = [(text, RegionMask(box_mask(*box))) for text, box in zip(scene.parts, boxes, strict=True)]
        how = AggregationConfig(overlap=way if way != "apart" else REGION_OVERLAPS[0])
        noise = unit_noise(self.backbone.family, 2000 + number, 1, SIZE, 2 * SIZE)
        return paint(self.backbone, self.bank, scene.plain, noise, SamplingConfig(STEPS, GUIDANCE, aggregation=how), regions)[0][0]

    def judge(self, scene: Composition, picture: Tensor) -> dict[str, float]:
        """Score what is in either half."""
        seen = embed(self.tower, torch.stack(list(picture.chunk(2, 2))))
        nearest, like, names = self.presence.found(seen), self.presence.cosines(seen), scene.names
        return {
            "present": statistics.mean(float(a == b) for a, b in zip(nearest, names, strict=True)),
            "bleed": statistics.mean(float(nearest[1 - u] == name) for u, name in enumerate(names)),
            "ia": statistics.mean(float(row[self.presence.names.index(name)]) for row, name in zip(like, names, strict=True)),
        }
