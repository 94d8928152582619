"""How far a figure can be trusted: bootstrap intervals (Efron 1979), through SciPy, the same for the same seed."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from torch import Tensor

Statistic = Callable[..., float]  # of one tensor of indices [n] for each sample


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds it with probability ``level``; ``over`` says what was drawn again, such as "24 pictures".

    With fewer than two of them ``low`` and ``high`` are nan.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    over: str = ""
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f}" if math.isnan(self.low) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    statistic: Statistic, *sizes: int, over: str, basic: bool = False, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Returns ``statistic(indices, ...)``, one tensor of indices for each of the samples of these ``sizes``, with its interval.

    The interval is that of percentiles, or with ``basic`` that one mirrored at the value: for figures that grow when a sample repeats
    itself. Draws of which the statistic says nothing, nan, are left out.
    """
    value = statistic(*(torch.arange(n) for n in sizes))
    if min(sizes) < 2 or math.isnan(value):
        return Interval(value, over=over, level=level)

    def of_drawn(*indices: np.ndarray) -> float:
        return statistic(*(torch.from_numpy(np.asarray(i)).long() for i in indices))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)  # of draws that say nothing
        drawn = scipy.stats.bootstrap(
            [np.arange(n) for n in sizes],
            of_drawn,
            vectorized=False,
            method="basic" if basic else "percentile",
            n_resamples=draws,
            confidence_level=level,
            random_state=np.random.default_rng(seed),
        )
    low, high = drawn.confidence_interval
    if np.isnan(drawn.bootstrap_distribution).any() and not basic:  # SciPy has nan for both
        low, high = np.nanquantile(drawn.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), over, level)


def mean_interval(values: Tensor, over: str, draws: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Returns the mean of ``values [N]`` with its interval of percentiles, the N drawn again."""
    numbers = values.detach().double().cpu().numpy()
    if len(numbers) < 2:
        return Interval(float(numbers.mean()), over=over, level=level)
    found = scipy.stats.bootstrap(
        [numbers],
        np.mean,
        method="percentile",
        n_resamples=draws,
        confidence_level=level,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(numbers.mean()), float(found.low), float(found.high), over, level)


def several(count: int, what: str) -> str:
    """ "1 picture", "24 pictures": what an interval is over."""
    return f"{count} {what}" + ("s" if count != 1 else "")
