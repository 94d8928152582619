"""How far a customised model's pictures lie from the original's, as 2-Wasserstein distance of Gaussians (Infusion; our estimator).

The mean moves when identity changes, and should; that pictures get alike shows in the covariance term and in the spreads.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .interval import Interval, bootstrap


@dataclass(frozen=True)
class Wasserstein:
    """``W2^2 = |mu_X - mu_Y|^2 + tr S_X + tr S_Y - 2 tr (S_X^1/2 S_Y S_X^1/2)^1/2`` in its two terms, and the spreads ``tr S``.

    ``floor`` is what two halves of the original's pictures are apart: no smaller distance means anything.
    """

    mean: float
    covariance: float
    spread_x: float
    spread_y: float
    floor: float

    @property
    def squared(self) -> float:
        return self.mean + self.covariance

    @property
    def ratio(self) -> float:
        """``tr S_Y / tr S_X``: below 1 the customised pictures are more alike."""
        return self.spread_y / self.spread_x


def terms(x: Tensor, y: Tensor) -> tuple[float, float, float, float]:
    """Mean term, covariance term, ``tr S_X`` and ``tr S_Y`` of features ``x [N, E]`` and ``y [M, E]``.

    The trace of the root is the nuclear norm of ``Xc Yc^T / sqrt(N M)``, so no matrix of E x E is needed.
    Raises ``ValueError`` for fewer than two pictures or features of different widths.
    """
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features {tuple(x.shape)} and {tuple(y.shape)}: expected at least 2 pictures each, embedded by one tower")
    x, y = x.double().cpu(), y.double().cpu()
    mean = float((x.mean(0) - y.mean(0)).square().sum())
    a, b = ((z - z.mean(0)) / len(z) ** 0.5 for z in (x, y))
    spread_x, spread_y = float(a.square().sum()), float(b.square().sum())
    a, b = (torch.linalg.qr(z, mode="r").R if len(z) > z.shape[1] else z for z in (a, b))  # the same products, fewer rows
    covariance = spread_x + spread_y - 2 * float(torch.linalg.svdvals(a @ b.T).sum())
    return mean, max(covariance, 0.0), spread_x, spread_y


def noise_floor(x: Tensor, splits: int = 10, seed: int = 0) -> float:
    """Mean ``W2^2`` of two random halves of ``x [N, E]``; nan for fewer than 4. Halves are smaller than the whole, so it is a bound."""
    if len(x) < 4:
        return float("nan")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(splits):
        order = torch.randperm(len(x), generator=generator)
        found.append(sum(terms(x[order[: len(x) // 2]], x[order[len(x) // 2 :]])[:2]))
    return sum(found) / splits


def wasserstein(x: Tensor, y: Tensor) -> Wasserstein:
    """Measures features ``x [N, E]`` of the original model's pictures and ``y [M, E]`` of the customised one's, same prompts."""
    return Wasserstein(*terms(x, y), noise_floor(x))


def wasserstein_interval(x: Tensor, y: Tensor, draws: int = 200, seed: int = 0) -> Interval:
    """The interval of ``W2^2``, pictures of both sides drawn again; mirrored, since repeated pictures add distance."""
    over = f"{len(x)} original and {len(y)} customised pictures"
    return bootstrap(lambda i, j: sum(terms(x[i], y[j])[:2]), len(x), len(y), over=over, basic=True, draws=draws, seed=seed)
