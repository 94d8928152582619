"""The part of a picture that a region is: the box around its mask."""

import torch
from torch import Tensor


def crop(picture: Tensor, mask: Tensor) -> Tensor:
    """``picture [3, H, W]`` cut to the box around ``mask [h, w]`` (over the whole picture, of any resolution) where it is 0.5 or more.

    Raises ``ValueError`` for a mask that is nowhere.
    """
    on = mask >= 0.5
    if not on.any():
        raise ValueError("a region is nowhere: its mask is 0.5 or more in no place, so there is nothing to cut out")
    box = []
    for side, size in ((1, picture.shape[1]), (0, picture.shape[2])):
        places = on.any(side).nonzero().flatten()
        low, high = (float(p) / on.shape[1 - side] for p in (places[0], places[-1] + 1))
        first = min(round(low * size), size - 1)
        box.append(slice(first, max(round(high * size), first + 1)))
    return picture[:, box[0], box[1]].contiguous()


def crops(pictures: Tensor, mask: Tensor) -> list[Tensor]:
    """Crop every one of ``pictures [N, 3, H, W]``."""
    return list(torch.stack([crop(picture, mask) for picture in pictures]))
