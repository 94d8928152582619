"""Scenes of two, three and four Doodle concepts: is each in its place, and nowhere else; ours beside a plain prompt, merged LoRAs and the
host's own masked conditionings with LoRA hooks. Resumable.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save
from torch.nn import functional as F

from ...bank.files import write_atomically
from ...bank.formats import write_picture
from ...engines.doodle import DoodleReader
from ...engines.parts import SHIPPED, load_judge
from ...measure.pictures import INK, PAPER, font
from .comfy import run_inside
from .compositions import ALIKE, compositions

WAYS = ("plain", "merged", "hooks", "fast", "paper", "auto", "fast guided", "tenth", "tenth guided")
SHOWN = 6  # scenes on the sheet
PRESENT, TIME = 0.94, 1.15  # the aim: of four, and in times of a plain prompt
CAPTIONS = "captions.safetensors"


def run(
    comfy: Path,
    folder: Path = Path("runs/scenes"),
    scenes: int = 200,
    seeds: int = 3,
    rows: Sequence[str] = WAYS,
    judge: str = SHIPPED,
) -> dict[str, Any]:
    """Paint scenes and score each way by the number of concepts: ``present`` is the share of concepts that are the nearest of the ten, and
    of empty places, to what is in their box; ``bleed``, the share of foreign boxes in which a concept is the nearest; ``ia``, the likeness
    in its box; ``collapsed``, the share of concepts whose likeness is below the bound of the collapse rate; ``ta``, the text alignment of
    the whole picture; ``parts``, identity by parts in its box as the ``judge`` reads it; ``_alike``: of scenes with two of one class;
    ``_interval``: half the 95 % interval of the mean over scenes. ``time`` is the median over scenes of the seconds of sampling by those of
    the plain prompt, of scenes that were painted since that is kept; ``frontier`` has the ways that no other one beats in both
    ``present_4`` and ``time_4``, and ``aim`` those that reach ``PRESENT`` in at most ``TIME``. Raises ``ValueError`` for a way that there
    is none of.
    """
    if unknown := [way for way in rows if way not in WAYS]:
        raise ValueError(f"row {unknown[0]!r}: expected some of {', '.join(WAYS)}")
    ways = rows
    composed = compositions(scenes)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        captions = F.normalize(DoodleReader().captions([scene.plain for scene in composed]), dim=-1)
    write_atomically(save({"captions": captions}), folder / CAPTIONS)
    load_judge(judge)  # what is no judge is refused before anything is painted
    read_by = judge if judge == SHIPPED else Path(judge).expanduser().resolve()
    told = run_inside(comfy, "host_scenes.py", folder.resolve(), scenes, seeds, ",".join(ways), read_by)
    scores = json.loads((folder / "scores.json").read_text())
    figures: dict[str, Any] = {}
    alike = [any({*pair} <= {*scene.names} for pair in ALIKE) for scene in composed]
    for way in ways:
        own = [scores[f"{way} {i}"][:seeds] for i in range(len(composed))]  # by scene and seed
        for count in (2, 3, 4):
            some = [each for each, scene in zip(own, composed, strict=True) if len(scene.names) == count]
            for key, foreign in (("present", 1), ("bleed", count - 1), ("ia", 1), ("parts", 1)):
                add(figures, f"{way}_{key}_{count}", [mean_in(scene, key) / foreign for scene in some])
            fallen = [statistics.mean(ia < told["collapse_bound"] for s in scene for ia in s["ia"]) for scene in some]
            add(figures, f"{way}_collapsed_{count}", fallen)
            add(figures, f"{way}_ta_{count}", [statistics.mean(s["ta"] for s in scene) for scene in some])
            add_time(figures, way, count, scores, [i for i, scene in enumerate(composed) if len(scene.names) == count])
        add(figures, f"{way}_present_alike", [mean_in(scene, "present") for scene, same in zip(own, alike, strict=True) if same])
    write_picture(sheet(folder, ways), folder / "sheet.png")
    figures |= beside_time({way: (figures[f"{way}_present_4"], figures[f"{way}_time_4"]) for way in ways if f"{way}_time_4" in figures})
    return figures | told | {"scenes": scenes, "seeds": seeds}


def add_time(figures: dict[str, Any], way: str, count: int, scores: dict[str, list[dict[str, Any]]], which: Sequence[int]) -> None:
    """The median over scenes of the time of a way by that of the plain prompt, where both are known."""
    pairs = [(scores[f"{way} {i}"][0].get("seconds"), scores.get(f"plain {i}", [{}])[0].get("seconds")) for i in which]
    if known := [own / plain for own, plain in pairs if own and plain]:
        figures[f"{way}_time_{count}"] = round(statistics.median(known), 4)


def beside_time(found: dict[str, tuple[float, float]]) -> dict[str, list[str]]:
    """Which ways no other one beats in both, how many are present and how long it takes; and which reach the aim of one pass."""
    beaten = {
        way
        for way, (present, time) in found.items()
        if any(p >= present and t <= time and (p, t) != (present, time) for p, t in found.values())
    }
    aim = [way for way, (present, time) in found.items() if present >= PRESENT and time <= TIME]
    return {"frontier": [way for way in found if way not in beaten], "aim": aim}


def mean_in(scene: Sequence[dict[str, Any]], key: str) -> float:
    """The mean of a score over the concepts and seeds of a scene."""
    return statistics.mean(x for s in scene for x in s[key])


def add(figures: dict[str, Any], name: str, values: Sequence[float]) -> None:
    """The mean of one value per scene and half its 95 % interval."""
    if values:
        figures[name] = round(statistics.mean(values), 4)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        figures[f"{name}_interval"] = round(1.96 * spread / len(values) ** 0.5, 4)


def sheet(folder: Path, ways: Sequence[str], label: int = 90, gap: int = 4) -> Image.Image:
    """The first scenes, a row for each way; nothing is chosen."""
    tiles = [[Image.open(folder / f"{way}-{i}.png") for i in range(SHOWN) if (folder / f"{way}-{i}.png").exists()] for way in ways]
    width = label + sum(tile.width + gap for tile in tiles[0])
    page = Image.new("RGB", (width, len(ways) * (tiles[0][0].height + gap)), PAPER)
    pen = ImageDraw.Draw(page)
    for row, (way, shown) in enumerate(zip(ways, tiles, strict=True)):
        x, y = label, row * (tiles[0][0].height + gap)
        pen.text((8, y + tiles[0][0].height // 2), way, INK, font(16), anchor="lm")
        for tile in shown:
            page.paste(tile, (x, y))
            x += tile.width + gap
    return page
