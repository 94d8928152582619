"""Regions that nobody drew: where the picture looks at the words of a concept while it is laid out, made disjoint.

Personal concepts are strong enough to take the picture over, so the layout is left to the global prompt; the first steps only ask, in
every cross-attention layer of middle size, how much each token would attend to the concept's words in the region's own text.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

UNTIL = 0.1  # of the sampling
LEVEL = 0.35  # of a map's range, to belong to a region


def regions_from_attention(maps: Tensor, level: float = LEVEL) -> Tensor:
    """Disjoint masks ``[U, H, W]`` of 0 and 1 from the attention to each region's words ``[U, H, W]``.

    A cell goes to the region whose map, scaled to its own range, is highest there, if that is above ``level``; of each region the piece
    around its peak stays, and grows by a cell where nobody else is. No region is empty as long as its peak is its own.
    """
    low, high = maps.flatten(1).amin(1)[:, None, None], maps.flatten(1).amax(1)[:, None, None]
    scaled = (maps - low) / (high - low).clamp(min=1e-9)
    best = F.one_hot(scaled.argmax(0), len(maps)).permute(2, 0, 1).to(scaled)
    pieces = torch.stack([_piece(scaled[u] * best[u], level) for u in range(len(maps))])
    return F.max_pool2d(pieces, 3, 1, 1) * best * (1 - pieces.sum(0)) + pieces


def _piece(held: Tensor, level: float) -> Tensor:
    """The connected cells above ``level`` around the highest one, ``[H, W]``."""
    wanted = (held > level).float()
    piece = torch.zeros_like(wanted)
    if wanted.any():
        piece.view(-1)[held.argmax()] = 1
    for _ in range(sum(held.shape)):
        piece = F.max_pool2d(piece[None, None], 3, 1, 1)[0, 0] * wanted
    return piece
