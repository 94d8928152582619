"""What is lost on the way: the best a concept ever was in a sequence of tasks, less what it is at the end."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..text_file import read_json
from .interval import Interval, mean_interval, several


def matrix(points: Sequence[Mapping[str, float]]) -> tuple[list[str], Tensor]:
    """Scores of concepts by name at each point in the sequence, as names in the order first seen and ``[points, concepts]``.

    nan where a concept was not scored. Raises ``ValueError`` for no points, or a concept that the last one does not have.
    """
    if not points:
        raise ValueError("no points in the sequence: expected the scores after at least one task")
    names = list(dict.fromkeys(name for point in points for name in point))
    if missing := [name for name in names if name not in points[-1]]:
        raise ValueError(f"the last point has no score of {', '.join(missing)}: what was forgotten cannot be said")
    return names, torch.tensor([[point.get(name, math.nan) for name in names] for point in points], dtype=torch.float64)


def forgetting(scores: Tensor) -> Tensor:
    """Best minus last of each concept, ``[concepts]`` from ``[points, concepts]``; 0 where the last is the best, never less."""
    return scores.nan_to_num(-math.inf).amax(0) - scores[-1]


@dataclass(frozen=True)
class ForgettingScore:
    """The score says what concepts lost along a sequence: their ``names``, ``scores [points, concepts]``, what each ``lost [concepts]``,
    and the mean.
    """

    names: Sequence[str]
    scores: Tensor
    lost: Tensor
    mean: Interval


def score_forgetting(points: Sequence[Mapping[str, float]]) -> ForgettingScore:
    """Scores a sequence of points as ``matrix`` takes it, and raises what it raises."""
    names, scores = matrix(points)
    lost = forgetting(scores)
    return ForgettingScore(names, scores, lost, mean_interval(lost, several(len(names), "concept")))


def scores_of(folder: Path) -> dict[str, float]:
    """The image alignment of each concept in a finished evaluation. Raises ``ValueError`` for a folder without one."""
    file = folder / "scores.json"
    try:
        return {name: float(figures["ia"]) for name, figures in read_json(file)["concepts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: no finished evaluation there ({error!r}): expected a folder that `cidm evaluate` wrote") from error


def points_in(text: str) -> list[dict[str, float]]:
    """Points of a sequence from JSON, such as ``[{"dog": 0.7}, {"dog": 0.65, "cat": 0.8}]``. Raises ``ValueError`` for anything else."""
    try:
        points = [{str(name): _read_score(score) for name, score in point.items()} for point in json.loads(text)]
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        wanted = 'a list with the scores after each task, such as [{"dog": 0.7}, {"dog": 0.65, "cat": 0.8}]'
        raise ValueError(f"{text[:80]!r} is no sequence of scores ({error}): expected {wanted}") from error
    return points


def _read_score(value: Any) -> float:
    """A score as a number. Raises ``ValueError`` for what is none, NaN and infinity included."""
    if isinstance(value, bool) or not math.isfinite(score := float(value)):
        raise ValueError(f"{value!r} is no score")
    return score
