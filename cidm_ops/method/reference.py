"""Reference attention: a picture paints beside the others, at their noise level, and their self-attention sees its tokens too.

No weights are learned and none are loaded: ``O = A([K; K_ref], [V; V_ref])`` in place of ``A(K, V)``, of which a part is taken. It is the
identity path that every U-Net has, and weaker than a learned concept.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .regions import cells

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # q [B, T, C], k and v [B, N, C], heads


def with_reference(own: Tensor, seen: Tensor, strength: Tensor) -> Tensor:
    """``own + s (seen - own)`` of self-attention's outputs ``[B, T, C]`` without and with the reference, ``strength [B]``: 0 is without, 1
    is with, and more goes on in that direction.
    """
    return own + strength.to(own)[:, None, None] * (seen - own)


def attend_to(attend: Attend, q: Tensor, k: Tensor, v: Tensor, guests: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """The attention of ``q [B, T, C]`` to ``k, v [B, T, C]`` and those of references behind them, ``guests [B, N, C]`` each.

    Keys that are there twice change nothing, so a picture that refers to itself stays as it is.
    """
    return attend(q, torch.cat([k, guests[0].to(k)], 1), torch.cat([v, guests[1].to(v)], 1), heads)


def shown_tokens(mask: Tensor, height: int, width: int) -> Tensor:
    """The tokens ``[N]`` of a reference on a grid of ``height x width`` cells that its subject covers by half; or the nearest one."""
    return cells(mask, height, width).flatten().nonzero()[:, 0]


def fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """The middle of a picture ``[C, H, W]`` in the shape of ``height x width`` pixels, at that size."""
    have, want = picture.shape[-1] / picture.shape[-2], width / height
    across = round(picture.shape[-2] * want) if have > want else picture.shape[-1]
    down = picture.shape[-2] if have > want else round(picture.shape[-1] / want)
    top, left = (picture.shape[-2] - down) // 2, (picture.shape[-1] - across) // 2
    part = picture[None, :, top : top + down, left : left + across]
    return part[0] if part.shape[-2:] == (height, width) else F.interpolate(part, (height, width), mode="bilinear", antialias=True)[0]
