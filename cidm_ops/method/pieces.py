"""Regions in joint attention: image and text tokens attend to each other in one sequence, the texts of all regions first (ours).

An image token attends to the text of its place and to all image tokens, a text to itself and to the image tokens of its place, and no
text to that of another place. That is said by pieces, each an ordinary attention of some queries to some keys, and not by a mask: exact
with every attention kernel, and it costs what is attended to.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..joint_sites import JointAttend

LEAST = 1e-3  # a smaller share of a token in a text, as far out in a feathered edge, is not worth an answer


@dataclass(frozen=True)
class Piece:
    """A piece is an attention of the tokens ``queries [M]`` of a sequence to the tokens ``keys [N]``; ``shares [M, 1]`` say how much of
    the answer of each query counts, all of it if ``None``.
    """

    queries: Tensor
    keys: Tensor
    shares: Tensor | None = None

    def to(self, x: Tensor) -> "Piece":
        """Move to the device of ``x``, with shares in its precision."""
        shares = None if self.shares is None else self.shares.to(x)
        return replace(self, queries=self.queries.to(x.device), keys=self.keys.to(x.device), shares=shares)


def pieces_of(lengths: Sequence[int], shares: Tensor, opened: Collection[int] = (), apart: bool = False) -> list[Piece]:
    """The pieces of a sequence of texts of these ``lengths``, one for each row of ``shares [U + 1, T]``, and T image tokens behind them.

    A token with shares in several places has the answers of all, each a whole softmax, by its shares. A text looks at the image
    tokens of its place only, those whose numbers are ``opened`` at all. ``apart``: image tokens of a region look at no tokens of other
    regions either, but at those that the first text has, and those at all.
    """
    shares = worth_an_answer(shares)
    image = torch.arange(shares.shape[1]) + sum(lengths)
    found, start = [], 0
    for number, (length, share) in enumerate(zip(lengths, shares, strict=True)):
        text = torch.arange(start, start + length)
        start += length
        held = share.nonzero()[:, 0]
        seen = image if number in opened else image[held]
        around = image[(share > 0) | (shares[0] > 0)] if apart and number else image
        counted = torch.cat([torch.ones(length), share[held]])[:, None]
        if len(seen) == len(around) == len(image):  # the text and its place look at the same tokens
            queries, keys = torch.cat([text, image[held]]), torch.cat([text, image])
            found.append(Piece(queries, keys, None if (counted == 1).all() else counted))
            continue
        if length:
            found.append(Piece(text, torch.cat([text, seen])))
        if len(held):
            own = counted[length:]
            found.append(Piece(image[held], torch.cat([text, around]), None if (own == 1).all() else own))
    return found


def pieces_across(lengths: Sequence[int], shares: Tensor) -> list[Piece]:
    """The pieces of a cross-attention of T image tokens to texts of these ``lengths`` behind each other, one for each row of
    ``shares [U + 1, T]``: a token looks at the texts of its places, and has the answers of all by its shares.
    """
    found, start = [], 0
    for length, share in zip(lengths, worth_an_answer(shares), strict=True):
        held, keys = share.nonzero()[:, 0], torch.arange(start, start + length)
        start += length
        if len(held):
            own = share[held][:, None]
            found.append(Piece(held, keys, None if (own == 1).all() else own))
    return found


def worth_an_answer(shares: Tensor) -> Tensor:
    """``shares [U + 1, T]`` of tokens in places without those that are too small, which add up to 1 again."""
    shares = shares.cpu().float()
    shares = torch.where(shares < LEAST, 0.0, shares)
    return shares / shares.sum(0)


def piecewise_attention(
    q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[Piece], attend: JointAttend, mask: Tensor | None = None
) -> Tensor:
    """The answers ``[B, S, C]`` to all queries of a sequence, ``q [B, H, S, D]``, by its pieces; ``k`` and ``v [B, H, N, D]`` are of it
    too, or of texts. ``attend`` computes one piece; a ``mask [..., S, N]`` of the whole goes with it.
    """
    out: Tensor | None = None
    for piece in pieces:
        rows, columns = piece.queries, piece.keys
        own = None if mask is None else mask[..., rows[:, None], columns]
        answer = attend(q[:, :, rows], k[:, :, columns], v[:, :, columns], own)
        if out is None:
            out = answer.new_zeros(len(answer), q.shape[2], answer.shape[-1])
        out.index_add_(1, rows, answer if piece.shares is None else answer * piece.shares)
    assert out is not None, "a sequence has at least one text"
    return out


def mask_with_texts(mask: Tensor, lengths: Sequence[int], total: int) -> Tensor:
    """A ``mask [..., S, S]``, or ``[..., 1, S]`` of keys alone, additive or boolean, of the first text and the image, for a sequence of
    ``total`` tokens in which more texts of these ``lengths`` stand between the two: nothing is said of them.

    Raises ``ValueError`` for a mask of another size.
    """
    if mask.shape[-2] == 1:
        mask = mask.expand(*mask.shape[:-2], mask.shape[-1], mask.shape[-1])
    more = sum(lengths[1:])
    own = torch.cat([torch.arange(lengths[0]), torch.arange(sum(lengths), total)]).to(mask.device)
    if mask.shape[-1] != total - more or mask.shape[-2] != total - more:
        raise ValueError(
            f"an attention mask of {mask.shape[-2]} x {mask.shape[-1]} tokens for a text and an image of {total - more}: another node on "
            "this model masks attention, and nobody knows what it masks of the texts of regions; take it off"
        )
    wide = torch.full((*mask.shape[:-2], total, total), mask.dtype == torch.bool, dtype=mask.dtype, device=mask.device)
    wide[..., own[:, None], own] = mask
    return wide
