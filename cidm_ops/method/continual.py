"""What other continual methods keep earlier concepts by, as terms like those of ``consolidation``: EWC and C-LoRA.

Written from the papers, for comparison.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .consolidation import Consolidation, Factors


class ElasticWeights(Consolidation):
    """EWC (Kirkpatrick et al. 2017, Eq. 3): ``1/2 sum_i F_i (theta - theta_i)^2`` over earlier tasks i and the entries of all factors.

    ``tasks`` holds for each of them the diagonal of its Fisher information, ``fisher.<layer>.up`` and ``.down``, and what was learned,
    ``at.<layer>.up`` and ``.down``. A sum over tasks is two tensors per factor, so a step costs the same after any number of them.
    """

    def __init__(self, tasks: Sequence[Mapping[str, Tensor]]):
        names = [key.removeprefix("fisher.") for key in tasks[0] if key.startswith("fisher.")] if tasks else []
        self.stiffness = {n: sum_of([task[f"fisher.{n}"] for task in tasks]) for n in names}
        self.pull = {n: sum_of([task[f"fisher.{n}"] * task[f"at.{n}"] for task in tasks]) for n in names}
        self.rest = float(sum((task[f"fisher.{n}"] * task[f"at.{n}"].square()).sum() for task in tasks for n in names))

    def loss(self, factors: Factors) -> Tensor:
        if not self.stiffness:
            return torch.zeros(())
        entries = name_factors(factors)
        terms = [(self.stiffness[n].to(p) * p.square() - 2 * self.pull[n].to(p) * p).sum() for n, p in entries.items()]
        return (torch.stack(terms).sum() + self.rest) / 2


class SelfRegularised(Consolidation):
    """C-LoRA (Smith et al. 2024, Eq. 4): ``sum || |sum_i A_i B_i| * A B ||^2`` over layers, the product taken entry by entry: a new
    change costs more where earlier ones were large. It grows without bound in no direction but zero, and draws the weights there.
    """

    def __init__(self, earlier: Sequence[Factors]):
        names = {name for factors in earlier for name in factors}
        self.taken = {n: sum_of([factors[n].delta() for factors in earlier if n in factors]).abs() for n in names}

    def loss(self, factors: Factors) -> Tensor:
        terms = [(self.taken[n].to(f.up) * f.delta()).square().sum() for n, f in factors.items() if n in self.taken]
        return torch.stack(terms).sum() if terms else torch.zeros(())


def name_factors(factors: Factors) -> dict[str, Tensor]:
    """Return every factor by the name of its layer and its side."""
    return {f"{layer}.{side}": getattr(f, side) for layer, f in factors.items() for side in ("up", "down")}


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)
