"""Infusion (Zeng et al. 2024, arXiv 2404.14007): a concept is one residual per cross-attention layer, added to the value of its class word.

The model, the text and the word's embedding stay as they are. With the map of the foundation, the frozen model that paints beside,
``O_C = A V* = A V + a_S r``: the attention that the class word gets times the residual, which is all that is computed here.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..hub import attended
from ..models.family import Family
from .attention import word_attention
from .regions import grid_of

# Where the map comes from: the foundation's (the paper), the customised features' own, or those and a residual of the key too. The
# last is what the authors' code does: it returns one stream, and locks its keys no more after they are assigned a second time.
STREAMS = ("dual", "single", "released_code")
LAYERS = ("all", "decoder")
VALUE, KEY = "to_v", "to_k"  # what a residual is added to: its name is that of the linear layer


@dataclass(frozen=True)
class Charge:
    """A concept at its class word: ``residuals [C]`` by linear layer (``<layer>.to_v``, ``.to_k``), times its strength; ``marks [N]`` is 1
    where the word stands in the text; ``mask [H, W]`` in [0, 1] over the picture says where it acts, everywhere if ``None``.
    """

    residuals: Mapping[str, Tensor]
    marks: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device) -> "Charge":
        mask = None if self.mask is None else self.mask.to(device)
        return Charge({n: r.to(device) for n, r in self.residuals.items()}, self.marks.to(device), mask)


@dataclass(frozen=True)
class Rows:
    """Rows ``at`` of a batch, which carry charges, and the rows whose attention they take: the foundation's, or their own."""

    at: slice
    foundation: slice
    charges: Sequence[Charge]
    grids: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # masks at the layers' resolutions


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
    heads = residual.to(attention).unflatten(-1, (attention.shape[1], -1))
    return torch.einsum("bht,hd->bthd", attention, heads).flatten(-2)


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


def charged(name: str, out: Tensor, q: Tensor, k: Tensor, heads: int, rows: Sequence[Rows], height: int, width: int) -> Tensor:
    """The output ``[B, T, C]`` of cross-attention layer ``name``, in which ``rows`` have what they take from their foundation and their
    charges; ``q [B, T, C]`` and ``k [B, N, C]`` are the layer's, ``height x width`` is the latent's size.
    """
    here = [r for r in rows if r.at != r.foundation or any(f"{name}.{VALUE}" in c.residuals for c in r.charges)]
    if not here:
        return out
    new = out.clone()
    for r in here:
        total = out[r.foundation]
        for c in r.charges:
            if f"{name}.{VALUE}" in c.residuals:
                attention = word_attention(q[r.foundation], k[r.foundation], c.marks, heads)
                if c.mask is not None:
                    attention = attention * at_layer(c, r, q.shape[1], height, width)
                total = total + infusion(attention, c.residuals[f"{name}.{VALUE}"]).to(out)
        new[r.at] = total
    return new


def at_layer(charge: Charge, rows: Rows, tokens: int, height: int, width: int) -> Tensor:
    """The mask of a charge for the tokens of a layer, ``[T]``: the mean over each cell."""
    key = (id(charge), tokens)
    if key not in rows.grids:
        assert charge.mask is not None
        grid = grid_of(tokens, height, width)
        rows.grids[key] = F.interpolate(charge.mask[None, None].float(), grid, mode="area").flatten()
    return rows.grids[key]


def charged_keys(name: str, k: Tensor, rows: Sequence[Rows]) -> Tensor:
    """The keys ``[B, N, C]`` of a layer with the residuals of the released code in them."""
    for r in rows:
        for c in r.charges:
            if (residual := c.residuals.get(f"{name}.{KEY}")) is not None:
                marks = c.marks.repeat(k.shape[1] // len(c.marks))
                k = torch.cat([k[: r.at.start], infused_value(k[r.at], marks, residual), k[r.at.stop :]])
    return k


@contextmanager
def infused(cross_attention: Mapping[str, nn.Module], rows: Sequence[Rows], height: int, width: int, keys: bool = False) -> Iterator[None]:
    """While open, ``rows`` of what goes through the model carry their charges; with ``keys`` those of the released code too."""

    def change(name: str, out: Tensor, q: Tensor, k: Tensor, heads: int) -> Tensor:
        return charged(name, out, q, k, heads, rows, height, width)

    with attended(cross_attention, change, (lambda name, k: charged_keys(name, k, rows)) if keys else None):
        yield
