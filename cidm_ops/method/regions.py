"""Region features (CIDM 3.3): in one pass, the image tokens of a region attend to its own text, with its own mixture of concepts.

The paper writes a region's features over those of the global prompt in every cross-attention layer. Here each token has shares in the
texts, which add up to 1: what no region covers is the global prompt's, where regions overlap the higher priority wins.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.clip import CHUNK

COVERED = 0.5  # of a cell, to belong to a region
NOWHERE = torch.zeros(1, 1)


@dataclass(frozen=True)
class Place:
    """Where a region is: ``mask [H, W]`` in [0, 1] over the whole picture, how strongly it holds there, who wins in overlaps (the
    highest ``priority``), and how wide its edge is: ``feather``, as a part of the picture's shorter side. ``sought``: nobody knows
    yet, it is found after this part of the sampling.
    """

    mask: Tensor
    strength: float = 1.0
    priority: int = 0
    feather: float = 0.0
    sought: float = 0.0


def box_mask(left: float, top: float, right: float, bottom: float, side: int = 512) -> Tensor:
    """A mask ``[side, side]`` of a box given in parts of the picture, from the top left.

    Raises ``ValueError`` for a box that leaves the picture or has no area.
    """
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        box = f"left {left:g}, top {top:g}, right {right:g}, bottom {bottom:g}"
        raise ValueError(f"box {box}: expected 0 <= left < right <= 1 and 0 <= top < bottom <= 1")
    mask = torch.zeros(side, side)
    x0, y0, x1, y1 = (round(edge * side) for edge in (left, top, right, bottom))
    mask[min(y0, side - 1) : max(y1, y0 + 1), min(x0, side - 1) : max(x1, x0 + 1)] = 1
    return mask


def cells(mask: Tensor, height: int, width: int) -> Tensor:
    """Cells of a grid that a mask covers by half or more, ``[height, width]`` of 0 and 1.

    A mask too small to cover any keeps the cell that it covers most; an empty one stays empty.
    """
    covered = F.interpolate(mask[None, None].float(), (height, width), mode="area")[0, 0]
    taken = (covered >= COVERED).float()
    if not taken.any() and mask.any():
        taken.view(-1)[covered.argmax()] = 1.0
    return taken


def softened(mask: Tensor, radius: float) -> Tensor:
    """A mask ``[H, W]`` blurred by a Gaussian of that standard deviation in cells; at the picture's edges it stays as it is."""
    if radius <= 0:
        return mask
    reach = max(1, round(3 * radius))
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / radius) ** 2)
    bell = bell / bell.sum()
    padded = F.pad(mask[None, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, bell[None, None, None]), bell[None, None, :, None])[0, 0]


def shares(places: Sequence[Place], height: int, width: int) -> Tensor:
    """Whose each cell is: ``[U + 1, height * width]``, the global prompt first; columns sum to 1.

    The highest priority takes its part of a cell first, equals divide it evenly, the next ones have what is left. A strength
    below 1 leaves the rest of a region's part to the global prompt.
    """
    held = torch.zeros(len(places), height * width)
    left = torch.ones(height * width)
    for priority in sorted({p.priority for p in places}, reverse=True):
        equals = [u for u, p in enumerate(places) if p.priority == priority]
        taken = torch.stack([softened(cells(places[u].mask, height, width), places[u].feather * min(height, width)) for u in equals])
        taken = taken.flatten(1) / taken.flatten(1).sum(0).clamp(min=1)
        held[equals] = left * taken
        left = left * (1 - taken.sum(0)).clamp(min=0)
    held = held * torch.tensor([p.strength for p in places]).reshape(-1, 1)
    return torch.cat([1 - held.sum(0, keepdim=True), held])


def lost(places: Sequence[Place], height: int, width: int) -> list[int]:
    """Which regions have a mask and no cell of this grid, because others of higher priority hold all of it."""
    held = shares(places, height, width)[1:]
    return [u for u, place in enumerate(places) if place.mask.any() and place.strength and not held[u].any()]


def small(places: Sequence[Place], side: int = 8) -> list[int]:
    """Which regions cover no cell of a coarse grid by half: its nearest one stands for them."""
    return [u for u, p in enumerate(places) if p.mask.any() and F.adaptive_avg_pool2d(p.mask[None, None].float(), side).amax() < COVERED]


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the layer that has so many tokens, in a U-Net that halves a latent ``[height, width]`` and rounds up."""
    rows, columns = height, width
    while rows * columns > tokens and rows * columns > 1:
        rows, columns = -(-rows // 2), -(-columns // 2)
    if rows * columns != tokens:
        raise ValueError(f"a layer has {tokens} tokens: no grid of a latent {height} x {width} has as many")
    return rows, columns


class Field:
    """The shares of every token, at the resolution of each layer."""

    def __init__(self, places: Sequence[Place], height: int, width: int):
        self.places, self.height, self.width = places, height, width
        self.known: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """``[U + 1, T]`` for tokens ``x [B, T, C]``."""
        key = (x.shape[1], x.device, x.dtype)
        if key not in self.known:
            self.known[key] = shares(self.places, *grid_of(x.shape[1], self.height, self.width)).to(x)
        return self.known[key]


@dataclass(frozen=True)
class Cut:
    """Who reads what in a batch of B rows with T tokens each, so that attention to the texts of all regions is one call.

    ``rest [S]``: tokens that read the global text in any row. ``pieces [P, M]``: which of the B * T tokens read the texts of regions, all
    pieces of one length; piece p is of the row and the region ``readers[p]``. ``where [D, B * T]``: the up to D answers that each token
    gets, among those of ``rest`` in every row and then of ``pieces``, and its ``shares [D, B * T, 1]`` in them, if not all are 1.
    """

    rest: Tensor
    pieces: Tensor
    readers: Sequence[tuple[int, int]]
    where: Tensor
    shares: Tensor | None

    def to(self, x: Tensor) -> "Cut":
        """On the device of ``x``, with shares in its precision."""
        rest, pieces, where = (t.to(x.device) for t in (self.rest, self.pieces, self.where))
        return replace(self, rest=rest, pieces=pieces, where=where, shares=None if self.shares is None else self.shares.to(x))


def cut(owners: Tensor, keys: int = CHUNK) -> Cut:
    """From the shares of the tokens in every row, ``[B, U + 1, T]``. A piece costs its tokens and so many ``keys``: of the lengths that
    regions have, the cheapest is taken.
    """
    batch, _, tokens = owners.shape
    rest = owners[:, 0].any(0).nonzero()[:, 0]
    held = [(b, u, owners[b, u].nonzero()[:, 0]) for b in range(batch) for u in range(1, owners.shape[1]) if owners[b, u].any()]
    sizes = {len(at) for *_, at in held}
    most = min(sizes, key=lambda m: sum(-(-len(at) // m) for *_, at in held) * (m + keys), default=1)
    parts = [(b, u, part) for b, u, at in held for part in at.split(most)]
    pieces = torch.stack([b * tokens + F.pad(p[None], (0, most - len(p)), mode="replicate")[0] for b, _, p in parts] or [rest[:0]])
    # every answer: of which token it is, where it is found, and what its share is
    of = torch.cat([b * tokens + rest for b in range(batch)] + [b * tokens + part for b, _, part in parts])
    first = batch * len(rest)
    at = torch.cat([torch.arange(first)] + [first + i * most + torch.arange(len(part)) for i, (*_, part) in enumerate(parts)])
    share = torch.cat([owners[:, 0, rest].flatten()] + [owners[b, u, part] for b, u, part in parts])
    order = of.argsort(stable=True)
    order = order[share[order] > 0]
    of, at, share = of[order], at[order], share[order]
    counts = of.bincount(minlength=batch * tokens)
    rank = torch.arange(len(of)) - (counts.cumsum(0) - counts)[of]  # first, second ... answer of its token
    where = torch.zeros(int(counts.max()), batch * tokens, dtype=torch.long)
    shares = torch.zeros(*where.shape, 1)
    where[rank, of], shares[rank, of, 0] = at, share
    return Cut(rest, pieces, [(b, u) for b, u, _ in parts], where, None if (shares == 1).all() else shares)


def region_attention(q: Tensor, by: Cut, whole: Callable[[Tensor | slice], Tensor], own: Callable[[Tensor], Tensor]) -> Tensor:
    """Cross-attention output of ``q [B, T, C]``: every token gets, by its shares, its attention to the global text and to those of its
    regions. ``whole(tokens)`` is the former for some tokens of all rows, ``own(pieces [P, M, C])`` the latter for pieces of ``by``.
    """
    if not by.readers:
        return whole(slice(None))
    answers = [own(q.flatten(0, 1)[by.pieces])]
    if len(by.rest):
        answers.insert(0, whole(by.rest if len(by.rest) < q.shape[1] else slice(None)))
    found = torch.cat([a.flatten(0, 1) for a in answers])
    if by.shares is None:
        return found[by.where[0]].view_as(q)
    out = found[by.where[0]] * by.shares[0]
    for at, share in zip(by.where[1:], by.shares[1:], strict=True):
        out.addcmul_(found[at], share)
    return out.view_as(q)


def alike(texts: Sequence[Tensor]) -> Tensor:
    """Texts ``[1, N, C]`` in one length, ``[J, N, C]``: a shorter one is repeated, which attention does not notice."""
    length = math.lcm(*(t.shape[1] for t in texts))
    return torch.cat([t.repeat(1, length // t.shape[1], 1) for t in texts])
