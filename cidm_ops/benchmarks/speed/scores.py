"""Scores of a bench on Doodle: kept one by one, so that one that was ended goes on, told as means, and read by who is in a picture."""

import json
import logging
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ...bank.files import write_atomically
from ...doodle.concepts import CONCEPTS, examples
from ...doodle.style import PLACES
from ...doodle.world import Scene, render
from ...engines.doodle import DoodleTower
from ...evaluation.doodle import pictured
from ...measure.interval import mean_interval
from ...measure.presence import Presence
from ...measure.report import from_pixels
from ...measure.scores import embed

log = logging.getLogger("cidm.bench")

T = TypeVar("T")
NOTHING = "nothing"


def kept_scores(file: Path, keys: Iterable[str], score: Callable[[str], T]) -> dict[str, T]:
    """Returns scores by key. Those that ``file`` lacks are made by ``score`` and written into it one by one."""
    scores: dict[str, T] = json.loads(file.read_text()) if file.exists() else {}
    found = {}
    for key in keys:
        if key not in scores:
            scores[key] = score(key)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(json.dumps(scores).encode(), file)
            log.info("%s: %s", key, scores[key])
        found[key] = scores[key]
    return found


def mean(name: str, values: Sequence[float]) -> dict[str, float]:
    """Returns the mean of a figure, and as ``<name>_interval`` half its 95 % interval by the normal distribution."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {name: round(statistics.mean(values), 4), f"{name}_interval": round(1.96 * spread / len(values) ** 0.5, 4)}


def mean_between(name: str, values: Sequence[float], over: str) -> dict[str, float]:
    """Returns the mean of a figure between ``<name>_low`` and ``<name>_high``, its bootstrap interval; ``over`` says of what."""
    told = mean_interval(torch.tensor(values), over)
    return {name: round(told.value, 4), f"{name}_low": round(told.low, 4), f"{name}_high": round(told.high, 4)}


def presence_of_ten(tower: DoodleTower) -> Presence:
    """Returns what tells who is in a picture: one of Doodle's ten, or ``NOTHING``, an empty place."""
    shown = {name: pictured(examples(concept, 16, seed=1)) for name, concept in CONCEPTS.items()}
    shown[NOTHING] = torch.cat([from_pixels(render(Scene((), place, seed=i))[0][None]) for place in PLACES for i in range(3)])
    return Presence({name: embed(tower, pictures) for name, pictures in shown.items()})
