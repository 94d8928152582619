"""Infusion (Zeng et al. 2024, arXiv 2404.14007): a concept is one residual per cross-attention layer, added to the value of its class word.

The model, the text and the word's embedding stay as they are. With the map of the foundation, the frozen model that paints beside,
``O_C = A V* = A V + a_S r``: the attention that the class word gets times the residual, which is all that is computed here.
"""

import re
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from ..models.family import Family

LAYERS = ("all", "decoder")
VALUE, KEY = "to_v", "to_k"  # what a residual is added to: its name is that of the linear layer


def residual_layers(family: Family, cross_attention: Sequence[str], chosen: str = "all") -> list[str]:
    """Those of the cross-attention layers that ``all``, ``decoder`` or a regular expression on their names takes.

    Raises ``ValueError`` when it finds none or is no expression.
    """
    try:
        wanted = re.compile({"all": "", "decoder": family.decoder}.get(chosen, chosen))
    except re.error as error:
        raise ValueError(f"layers {chosen!r}: expected one of {', '.join(LAYERS)} or a regular expression ({error})") from error
    found = [name for name in cross_attention if wanted.search(name)]
    if not found:
        raise ValueError(f"layers {chosen!r}: no cross-attention layer has that in its name, such as {cross_attention[0]}")
    return found


def infused_value(v: Tensor, marks: Tensor, residual: Tensor) -> Tensor:
    """``V* = V + 1[i in S] r`` for values ``v [B, N, C]``, ``marks [N]`` or ``[B, N]`` and a residual ``[C]``; keys alike."""
    return v + marks.to(v)[..., None] * residual.to(v)


def infusion(attention: Tensor, residual: Tensor) -> Tensor:
    """``a_S r``, ``[B, T, C]``, from ``attention [B, heads, T]`` and a residual ``[C]`` whose heads lie side by side."""
    heads = rearrange(residual.to(attention), "(h d) -> h d", h=attention.shape[1])
    return rearrange(torch.einsum("bht,hd->bthd", attention, heads), "b t h d -> b t (h d)")


def masked_error(guess: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Squared error of each picture, ``[B]``, of ``guess m`` and ``target m [B, C, h, w]`` under a soft ``mask [B, 1, h, w]``.

    As in the authors' code the mean is over the whole picture: a small subject weighs little.
    """
    difference = guess - target if mask is None else (guess - target) * mask
    return difference.square().mean((1, 2, 3))


def foundation_anchor(guess: Tensor, foundation: Tensor, mask: Tensor | None) -> Tensor:
    """Our addition, ``[B]``: outside of the mask the customised stream is to predict what the foundation does. 0 without a mask."""
    if mask is None:
        return guess.new_zeros(len(guess))
    return ((1 - mask) * (guess - foundation.detach()).square()).mean((1, 2, 3))
