"""How far a figure can be trusted: bootstrap intervals (Efron 1979), the same for the same seed."""

import math
from collections.abc import Callable
from dataclasses import dataclass

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
    """Of ``statistic(indices, ...)``, one tensor of indices for each of the samples of these ``sizes``.

    The interval of percentiles, or with ``basic`` that one mirrored at the value: for figures that grow when a sample repeats itself.
    """
    value = statistic(*(torch.arange(n) for n in sizes))
    if min(sizes) < 2:
        return Interval(value, over=over, level=level)
    generator = torch.Generator().manual_seed(seed)
    drawn = [statistic(*(torch.randint(n, (n,), generator=generator) for n in sizes)) for _ in range(draws)]
    return _interval(value, torch.tensor(drawn, dtype=torch.float64), over, basic, level)


def mean_interval(values: Tensor, over: str, draws: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Of the mean of ``values [N]``, the N drawn again."""
    values = values.detach().double().cpu()
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()), over=over, level=level)
    chosen = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
    return _interval(float(values.mean()), values[chosen].mean(1), over, False, level)


def _interval(value: float, drawn: Tensor, over: str, basic: bool, level: float) -> Interval:
    low, high = (float(drawn.quantile(q)) for q in ((1 - level) / 2, (1 + level) / 2))
    if basic:
        low, high = 2 * value - high, 2 * value - low
    return Interval(value, low, high, over, level)


def several(count: int, what: str) -> str:
    """ "1 picture", "24 pictures": what an interval is over."""
    return f"{count} {what}" + ("s" if count != 1 else "")
