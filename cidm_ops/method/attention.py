"""What looks at a concept's words; and attention regularisation, where those words are made to look at the concept.

The regularisation is that of Mix-of-Show and of CIDM's code: the free adjective may not look outside the mask, the last noun's map is
drawn to the mask itself. Both papers' code applies this without real masks, where it is NaN and dropped; here pictures without a mask have
no part in it and an empty set gives 0.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


def attention_weights(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """How much of each query's attention goes to each token, ``[B, heads, T, N]``, for ``q [B, T, C]`` and ``k [B, N, C]``; in fp32."""
    query, key = (rearrange(x.float(), "b t (h d) -> b h t d", h=heads) for x in (q, k))
    return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)


def word_attention(q: Tensor, k: Tensor, marks: Tensor, heads: int) -> Tensor:
    """``a_S [B, heads, T]``: how much of each query's attention goes to the marked tokens, summed.

    ``q [B, T, C]``, ``k [B, N, C]``, ``marks [N]`` or ``[B, N]``; in fp32. A text that stands in ``k`` several times over, as hosts
    repeat the shorter one of a batch, is marked in every copy.
    """
    weights = attention_weights(q, k, heads)
    marks = marks.to(weights).expand(len(q), -1)
    marks = marks.repeat(1, k.shape[1] // marks.shape[1])
    return torch.einsum("bhtn,bn->bht", weights, marks)


def token_maps(seen: Sequence[tuple[Tensor, Tensor, int]], row: int, positions: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Mean attention ``[P, h, w]`` over heads and layers of picture ``row`` to P ``positions`` of its text, of layers that all have
    ``size`` (h, w) image tokens.
    """
    seen_there = [attention_weights(q[row : row + 1], k[row : row + 1], heads)[0, ..., positions].mean(0) for q, k, heads in seen]
    return rearrange(torch.stack(seen_there).mean(0), "(h w) p -> p h w", h=size[0])


def word_maps(seen: Sequence[tuple[Tensor, Tensor, int]], row: int, position: int, shape: tuple[int, int]) -> dict[tuple[int, int], Tensor]:
    """Mean attention ``[h, w]`` over layers and heads of picture ``row`` to the text's ``position``, per resolution, its maximum at 1."""
    maps: dict[tuple[int, int], list[Tensor]] = {}
    for q, k, heads in seen:
        tokens = q.shape[1]
        height = round((tokens * shape[0] / shape[1]) ** 0.5)
        marks = F.one_hot(torch.tensor(position, device=k.device), k.shape[1])
        seen_there = word_attention(q[row : row + 1], k[row : row + 1], marks, heads)[0].mean(0)
        maps.setdefault((height, tokens // height), []).append(seen_there.view(height, -1))
    means = {size: torch.stack(found).mean(0) for size, found in maps.items()}
    return {size: m / m.detach().amax().clamp(min=1e-6) for size, m in means.items()}


def attention_loss(seen: Sequence[tuple[Tensor, Tensor, int]], row: int, positions: Sequence[int], mask: Tensor) -> Tensor:
    """The loss of one picture with ``mask [1, h, w]`` in [0, 1] is the mean square of the first word's map outside the mask, and the mean
    squared distance of the last word's map from the mask, averaged over resolutions. ``positions`` are those of the words in the text.
    """
    shape = (mask.shape[-2], mask.shape[-1])
    losses = []
    for word in {0, len(positions) - 1}:
        for size, found in word_maps(seen, row, positions[word], shape).items():
            area = F.interpolate(mask[None].float(), size, mode="area")[0, 0].to(found)
            if word:
                losses.append((found - area).square().mean())
            else:
                outside = 1 - area
                losses.append((found.square() * outside).sum() / outside.sum().clamp(min=1e-6))
    return torch.stack(losses).mean() if losses else mask.new_zeros(())
