"""What a benchmark comes to: a row per method with intervals, and who is ahead at equal text alignment."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...measure.interval import Interval, mean_interval
from ...method.overlap import overlaps
from .methods import Method
from .protocol import ONCE, Bench, Scores

Means = Mapping[str, tuple[float, float]]  # IA and TA by concept
Point = tuple[float, float, float]  # strength, TA, IA


@dataclass(frozen=True)
class Row:
    """A method over seeds and concepts. Means per concept and seed ``[seeds * concepts]``, concepts in turn; the curve of one seed."""

    method: Method
    ia: Sequence[float]
    ta: Sequence[float]
    forgetting: Sequence[float]  # best less last IA
    concepts: Mapping[str, tuple[float, float]]  # IA and TA by concept
    seeds: Sequence[float]  # mean IA by seed
    curve: Sequence[Point]
    ims: Sequence[float]  # identity matching
    parts: Sequence[float] = ()  # identity by parts, of concepts that have any, where a judge read them


def row_of(bench: Bench, name: str, method: Method, seeds: Sequence[int], curves: Sequence[int] = (0,)) -> Row:
    """Score a method over ``seeds``; those that are among ``curves`` give its curve over the strength."""
    last = [means(bench.scores(name, method, seed)) for seed in seeds]
    first = [] if method.merge in ONCE else [means(bench.scores(name, method, seed, first=True)) for seed in seeds]
    names = list(last[0])
    by_concept = {n: (statistics.mean(s[n][0] for s in last), statistics.mean(s[n][1] for s in last)) for n in names}
    drawn = [seed for seed in seeds if seed in curves]
    strengths = sorted((*method.strengths, 1.0)) if drawn else [1.0]
    curve = [_point(bench, name, method, drawn or seeds, strength) for strength in strengths]
    ia, ta = ([s[n][i] for s in last for n in names] for i in (0, 1))
    ims = [s[n][0] / bench.suite.mean_lengths[n] for s in last for n in names]
    spread = [statistics.mean(v[0] for v in s.values()) for s in last]
    parts = [statistics.mean(s["parts"]) for seed in seeds for s in bench.scores(name, method, seed).values() if "parts" in s]
    return Row(method, ia, ta, _forgetting(first, last), by_concept, spread, curve, ims, parts)


def _forgetting(first: Sequence[Means], last: Sequence[Means]) -> list[float]:
    """The best less the last IA of each seed and concept; empty where nothing was scored before the last task."""
    return [max(before[n][0], after[n][0]) - after[n][0] for before, after in zip(first, last, strict=False) for n in after]


def _point(bench: Bench, name: str, method: Method, seeds: Sequence[int], strength: float) -> Point:
    """The mean TA and IA of a method at one strength, over seeds and concepts."""
    values = [v for seed in seeds for v in means(bench.scores(name, method, seed, strength)).values()]
    return strength, statistics.mean(ta for _, ta in values), statistics.mean(ia for ia, _ in values)


def means(scores: Mapping[str, Scores]) -> dict[str, tuple[float, float]]:
    """IA and TA of each concept; TA is nan without a text side."""
    return {n: (statistics.mean(s["ia"]), statistics.mean(s.get("ta", [math.nan]))) for n, s in scores.items()}


def best_at(curve: Sequence[Point], ta: float) -> float | None:
    """The highest IA that a method reaches at no less than a TA, straight lines between the points of its curve; None if it never does."""
    reached = [ia for _, have, ia in curve if have >= ta]
    for (_, a, x), (_, b, y) in zip(curve, curve[1:], strict=False):
        if (a - ta) * (b - ta) < 0:
            reached.append(x + (y - x) * (ta - a) / (b - a))
    return max(reached, default=None)


def figures(rows: Mapping[str, Row], ours: str = "cidm", upper: str = "alone", lower: str = "base") -> dict[str, Any]:
    """Flat figures: means with 95 % intervals over concepts and seeds, differences in pairs, and margins at equal TA."""
    found: dict[str, Any] = {}
    for name, row in rows.items():
        for key, values in (("ia", row.ia), ("ta", row.ta), ("ims", row.ims), ("forgetting", row.forgetting), ("parts", row.parts)):
            if values and not math.isnan(values[0]):
                put(found, f"{name}_{key}", mean_interval(torch.tensor(values), ""))
        found[f"{name}_ia_spread_of_seeds"] = statistics.pstdev(row.seeds)
    if ours in rows:
        for other, key in ((upper, "ia"), (lower, "ta")):
            if other in rows and f"{other}_{key}" in found:
                put(found, f"{ours}_{key}_less_{other}", apart(getattr(rows[ours], key), getattr(rows[other], key)))
        for name, row in rows.items():
            if name not in (ours, upper, lower, "drawn"):
                put(found, f"{ours}_ia_less_{name}", apart(rows[ours].ia, row.ia))
                if f"{name}_ta" in found and f"{ours}_ta" in found:
                    put(found, f"{ours}_ta_less_{name}", apart(rows[ours].ta, row.ta))
                margins = _margins(rows[ours].curve, row.curve)
                found[f"{ours}_ahead_of_{name}_at_equal_ta"] = margins.get(1.0)
                found[f"{ours}_least_ahead_of_{name}_on_its_curve"] = min(margins.values(), default=None)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}


def _margins(ours: Sequence[Point], other: Sequence[Point]) -> dict[float, float]:
    """How much higher our IA is at no less than the other's TA, by the other's strength; without those whose TA we never reach."""
    best = {strength: (best_at(ours, ta), ia) for strength, ta, ia in other}
    return {strength: mine - ia for strength, (mine, ia) in best.items() if mine is not None}


def overlap(bench: Bench, training: str, seeds: Sequence[int]) -> float:
    """Mean cosine of the principal angles between what two concepts write, over pairs, layers and seeds; 0 is nothing in common."""
    found = []
    for seed in seeds:
        cosines = overlaps([concept.factors for concept in bench.learn(training, seed).values()])
        i, j = torch.triu_indices(len(cosines), len(cosines), 1)
        found.append(float(cosines[i, j].mean()))
    return statistics.mean(found)


def apart(mine: Sequence[float], other: Sequence[float]) -> Interval:
    """The mean difference in pairs of concept and seed, with its interval."""
    return mean_interval(torch.tensor(mine) - torch.tensor(other), "")


def put(found: dict[str, Any], key: str, interval: Interval) -> None:
    found |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
