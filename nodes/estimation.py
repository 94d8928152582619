"""Region noise estimation (CIDM 3.3, Eq. 4-5) in the host: passes for single regions, blended into the prediction of the positive text.

The unconditional part of Eq. 4 is the same in every pass, so blending what the positive texts predict is Eq. 5, and whatever a sampler, a
guider or another pack does with positive and negative predictions stays as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.conds
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..cidm_ops.method.blending import blend

REGION = "cidm_region"  # of a pass, on its way to the U-Net: [that region alone, ALL of them, or NONE; whether what is around it is hidden]
ALL, NONE = 0, -1


@dataclass(frozen=True)
class Estimation:
    """``alpha`` of the global prediction inside regions; passes from ``start`` to ``end`` of the sampling, as parts of it; overlap and
    feather of the blend; ``bootstrap``: so long, each pass sees plain background outside of its region. ``features``: the global pass has
    the regions' features too.
    """

    alpha: float = 0.1
    start: float = 0.0
    end: float = 1.0
    overlap: str = "mean"
    feather: float = 0.0
    bootstrap: float = 0.0
    features: bool = False


PRESETS = {"fast": None, "paper": Estimation(), "auto": Estimation(end=0.3, features=True)}


def estimating(model: ModelPatcher, regions: int, weights: Callable[[int, int], Tensor], how: Estimation) -> ModelPatcher:
    """A clone of a model that paints so many regions, with region noise estimation by the ``weights [B or 1, U + 1, H, W]`` for a size."""
    patched = model.clone()
    sampling = patched.get_model_object("model_sampling")
    first, last, plain = (float(sampling.percent_to_sigma(part)) for part in (how.start, how.end, how.bootstrap))

    def calc(executor: Callable, base: Any, conds: list, x: Tensor, timestep: Tensor, options: dict) -> list[Tensor]:
        sigma = float(timestep.max())
        now = how.alpha < 1 and last < sigma <= first and bool(conds[0])
        around = ALL if how.features or not now else NONE
        marked = [cond and [of_region(c, around) for c in cond] for cond in conds]
        if not now:
            return executor(base, marked, x, timestep, options)
        hidden = how.bootstrap > 0 and sigma > plain
        passes = [[of_region(c, u, hidden) for c in conds[0]] for u in range(1, regions + 1)]
        whole, *rest = executor(base, [*marked, *passes], x, timestep, options)
        others, own = rest[: len(conds) - 1], rest[len(conds) - 1 :]
        return [blend(whole, own, weights(*x.shape[-2:])), *others]

    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "cidm_estimation", calc)
    return patched


def of_region(cond: dict, region: int, hidden: bool = False) -> dict:
    """A cond that tells the U-Net which regions are in its pass."""
    marker = comfy.conds.CONDRegular(torch.tensor([[region, int(hidden)]]))
    return {**cond, "model_conds": {**cond["model_conds"], REGION: marker}}
