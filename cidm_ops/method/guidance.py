"""Guidance by two texts: ProFusion's last step (Zhou et al. 2023, arXiv 2305.13579), a term for who it is and one for what is said."""

import torch
from torch import Tensor


def two_terms(nothing: Tensor, identity: Tensor, text: Tensor | None, first: Tensor | float, second: float, rescale: float = 0.0) -> Tensor:
    """``D_0 + w1 (D_id - D_0) + w2 (D_text - D_0)`` of what a model takes for clean, ``[B, C, h, w]``.

    With ``second`` 0, or no text, it is classifier-free guidance to the last bit. ``rescale`` brings the spread of each picture that far
    back to that of ``identity`` (Lin et al. 2024, Eq. 15 and 16), since two terms saturate.
    """
    found = nothing + first * (identity - nothing)
    return found if text is None else with_text(found, nothing, identity, text, second, rescale)


def with_text(found: Tensor, nothing: Tensor, identity: Tensor, text: Tensor, second: float, rescale: float = 0.0) -> Tensor:
    """``two_terms`` whose first term is in ``found`` already, by whatever guidance a host has."""
    if second:
        found = found + second * (text - nothing)
    if not rescale:
        return found
    dims = tuple(range(1, found.ndim))
    spread = found.std(dims, keepdim=True)
    factor = identity.std(dims, keepdim=True) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return found * (1 + rescale * (factor - 1))
