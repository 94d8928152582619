"""Region features (CIDM 3.3): in one pass, the image tokens of a region attend to its own text, with its own mixture of concepts.

The paper writes a region's features over those of the global prompt in every cross-attention layer. Here each token has shares in the
texts, which add up to 1: what no region covers is the global prompt's, where regions overlap the higher priority wins. Equals divide a
token, or the one that answers more strongly has it (after MaxFusion, Nair et al. 2024, which fuses ControlNets so).
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
class RegionMask:
    """A mask says where a region is: ``mask [H, W]`` in [0, 1] over the whole picture, how strongly it holds there, who wins in overlaps
    (the highest ``priority``), and how wide its edge is: ``feather``, as a part of the picture's shorter side. ``sought``: nobody knows
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


def soften(mask: Tensor, radius: float) -> Tensor:
    """Blur a mask ``[H, W]`` by a Gaussian of that standard deviation in cells; at the picture's edges it stays as it is."""
    if radius <= 0:
        return mask
    reach = max(1, round(3 * radius))
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / radius) ** 2)
    bell = bell / bell.sum()
    padded = F.pad(mask[None, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, bell[None, None, None]), bell[None, None, :, None])[0, 0]


def shares(masks: Sequence[RegionMask], height: int, width: int) -> Tensor:
    """Whose each cell is: ``[U + 1, height * width]``, the global prompt first; columns sum to 1.

    The highest priority takes its part of a cell first, equals divide it evenly, the next ones have what is left. A strength
    below 1 leaves the rest of a region's part to the global prompt.
    """
    held = torch.zeros(len(masks), height * width)
    left = torch.ones(height * width)
    for priority in sorted({p.priority for p in masks}, reverse=True):
        equals = [u for u, p in enumerate(masks) if p.priority == priority]
        taken = torch.stack([soften(cells(masks[u].mask, height, width), masks[u].feather * min(height, width)) for u in equals])
        taken = taken.flatten(1) / taken.flatten(1).sum(0).clamp(min=1)
        held[equals] = left * taken
        left = left * (1 - taken.sum(0)).clamp(min=0)
    held = held * torch.tensor([p.strength for p in masks]).reshape(-1, 1)
    return torch.cat([1 - held.sum(0, keepdim=True), held])


def hidden_regions(masks: Sequence[RegionMask], height: int, width: int) -> list[int]:
    """Which regions have a mask and no cell of this grid, because others of higher priority hold all of it."""
    held = shares(masks, height, width)[1:]
    return [u for u, region in enumerate(masks) if region.mask.any() and region.strength and not held[u].any()]


def tiny_regions(masks: Sequence[RegionMask], side: int = 8) -> list[int]:
    """Which regions cover no cell of a coarse grid by half: its nearest one stands for them."""
    return [u for u, p in enumerate(masks) if p.mask.any() and F.adaptive_avg_pool2d(p.mask[None, None].float(), side).amax() < COVERED]


@dataclass(frozen=True)
class AttentionPartition:
    """Who reads what in a batch of B rows with T tokens each, so that attention to the texts of all regions is one call.

    ``background [S]``: tokens that read the global text in any row. ``chunks [P, M]``: which of the B * T tokens read the texts of
    regions, all chunks of one length; chunk p is of the row and the region ``owners[p]``. ``sources [D, B * T]``: the up to D answers that
    each token gets, among those of ``background`` in every row and then of ``chunks``, and its ``shares [D, B * T, 1]`` in them, if not
    all are 1.
    """

    background: Tensor
    chunks: Tensor
    owners: Sequence[tuple[int, int]]
    sources: Tensor
    shares: Tensor | None

    def to(self, x: Tensor) -> "AttentionPartition":
        """Move to the device of ``x``, with shares in its precision."""
        background, chunks, sources = (t.to(x.device) for t in (self.background, self.chunks, self.sources))
        shares = None if self.shares is None else self.shares.to(x)
        return replace(self, background=background, chunks=chunks, sources=sources, shares=shares)


def partition(shares: Tensor, keys: int = CHUNK) -> AttentionPartition:
    """The partition for the shares of the tokens in every row, ``[B, U + 1, T]``. A chunk costs its tokens and so many ``keys``: of the
    lengths that regions have, the cheapest is taken.
    """
    batch, regions, tokens = shares.shape
    background = shares[:, 0].any(0).nonzero()[:, 0]
    held = [(b, u, shares[b, u].nonzero()[:, 0]) for b in range(batch) for u in range(1, regions) if shares[b, u].any()]
    length = _cheapest_length([len(at) for *_, at in held], keys)
    chunks = [(b, u, part) for b, u, at in held for part in at.split(length)]
    # chunks are padded to one length by their last token; in the flat batch, row b starts at b * T
    padded = [b * tokens + F.pad(part[None], (0, length - len(part)), mode="replicate")[0] for b, _, part in chunks]

    # all answers one after another: the background of every row, then the chunks without their padding
    first = batch * len(background)
    token_of_answer = torch.cat([b * tokens + background for b in range(batch)] + [b * tokens + part for b, _, part in chunks])
    place_of_answer = torch.cat([torch.arange(first)] + [first + i * length + torch.arange(len(p)) for i, (*_, p) in enumerate(chunks)])
    share_of_answer = torch.cat([shares[:, 0, background].flatten()] + [shares[b, u, part] for b, u, part in chunks])

    # the answers of each token side by side, those without a share left out
    order = token_of_answer.argsort(stable=True)
    order = order[share_of_answer[order] > 0]
    token, place, share = token_of_answer[order], place_of_answer[order], share_of_answer[order]
    counts = token.bincount(minlength=batch * tokens)
    rank = torch.arange(len(token)) - (counts.cumsum(0) - counts)[token]  # first, second ... answer of its token
    sources = torch.zeros(int(counts.max()), batch * tokens, dtype=torch.long)
    held_shares = torch.zeros(*sources.shape, 1)
    sources[rank, token], held_shares[rank, token, 0] = place, share
    whole = bool((held_shares == 1).all())
    owners = [(b, u) for b, u, _ in chunks]
    return AttentionPartition(background, torch.stack(padded or [background[:0]]), owners, sources, None if whole else held_shares)


def _cheapest_length(sizes: Sequence[int], keys: int) -> int:
    """Choose among the sizes that regions have the length of chunks that wastes least: each costs its tokens and its keys, padding
    included.
    """
    return min({*sizes}, key=lambda length: sum(-(-size // length) for size in sizes) * (length + keys), default=1)


def region_attention(
    q: Tensor,
    by: AttentionPartition,
    whole: Callable[[Tensor | slice], Tensor],
    own: Callable[[Tensor], Tensor],
    base: Callable[[], Tensor] | None = None,
) -> Tensor:
    """The cross-attention output of ``q [B, T, C]`` in which every token has, by its shares, its attention to the global text and to those
    of its regions. ``whole(tokens)`` is the former for some tokens of all rows, ``own(chunks [P, M, C])`` the latter for chunks of ``by``.
    With ``base()``, the former for all tokens, the strongest of several regions has a token alone.
    """
    if not by.owners:
        return whole(slice(None))
    answers = [own(q.flatten(0, 1)[by.chunks])]
    if len(by.background):
        answers.insert(0, whole(by.background if len(by.background) < q.shape[1] else slice(None)))
    found = torch.cat([a.flatten(0, 1) for a in answers])
    if by.shares is None:
        return found[by.sources[0]].view_as(q)
    shares = by.shares if base is None else strongest_shares(found, base().flatten(0, 1), by)
    out = found[by.sources[0]] * shares[0]
    for at, share in zip(by.sources[1:], shares[1:], strict=True):
        out.addcmul_(found[at], share)
    return out.view_as(q)


def strongest_shares(found: Tensor, base: Tensor, by: AttentionPartition) -> Tensor:
    """The shares ``[D, B * T, 1]`` in which, of the regions that share a token, the one has all their shares whose answer is further from
    the base's, ``|h_u - h_base| / mean |h_u - h_base|`` with the mean over the tokens of its region.

    ``found [A, C]`` are all answers as ``by`` counts them, ``base [B * T, C]`` those to the global text.
    """
    assert by.shares is not None
    first, length = len(found) - by.chunks.numel(), by.chunks.shape[1]
    ours = (by.sources >= first) & (by.shares[..., 0] > 0)  # [D, B * T]
    number = {owner: i for i, owner in enumerate(dict.fromkeys(by.owners))}
    owner_of = torch.tensor([number[owner] for owner in by.owners], device=found.device)
    owner = owner_of[((by.sources - first).clamp(min=0)) // length]
    moved = (found[by.sources] - base).float().norm(dim=-1) * ours
    total, count = (torch.zeros(len(number), device=found.device).index_add(0, owner.flatten(), x.flatten()) for x in (moved, ours.float()))
    mean = (total / count.clamp(min=1)).clamp(min=torch.finfo(torch.float32).tiny)
    relative = torch.where(ours, moved / mean[owner], torch.full_like(moved, -torch.inf))
    wins = torch.nn.functional.one_hot(relative.argmax(0), len(relative)).T.bool() & ours
    held = (by.shares[..., 0] * ours).sum(0)
    return torch.where(ours, wins * held, by.shares[..., 0])[..., None].to(by.shares)


def pad_to_common_length(texts: Sequence[Tensor]) -> Tensor:
    """Texts ``[1, N, C]`` in one length, ``[J, N, C]``: a shorter one is repeated, which attention does not notice."""
    length = math.lcm(*(t.shape[1] for t in texts))
    return torch.cat([t.repeat(1, length // t.shape[1], 1) for t in texts])
