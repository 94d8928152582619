"""From a picture of any shape to the shape it is trained in."""

import math
import random

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.sd import SD1
from .config import FITS


def fit(
    picture: Tensor, mask: Tensor | None, mode: str, size: int, rng: random.Random, cell: int = SD1.cell
) -> tuple[Tensor, Tensor | None]:
    """Fit a picture ``[3, H, W]`` in [0, 1] and its mask ``[1, H, W]`` for training at ``size`` pixels.

    ``centre``: the middle square. ``buckets``: the shape nearest to the picture's own among those of at most ``size^2``
    pixels. ``random``: the reference's crop and pad, new at every draw; the mask then marks what is picture, not padding.
    ``as_given``: only cut to whole cells of ``cell`` pixels. Raises ``ValueError`` for an unknown mode.
    """
    if mode == "random":
        return crop_and_pad(picture, mask, size, rng)
    height, width = picture.shape[-2:]
    if mode == "as_given":
        to = (height // cell * cell, width // cell * cell)
        return picture[:, : to[0], : to[1]], None if mask is None else mask[:, : to[0], : to[1]]
    if mode not in FITS:
        raise ValueError(f"fit {mode!r}: expected one of {', '.join(FITS)}")
    to = (size, size) if mode == "centre" else bucket(height, width, size, cell)
    return cover(picture, *to), None if mask is None else cover(mask, *to)


def bucket(height: int, width: int, size: int, cell: int = SD1.cell) -> tuple[int, int]:
    """Height and width of the training shape for a picture: multiples of an eighth of ``size`` in whole cells, area at most ``size^2``."""
    step = max(cell, size // 8 // cell * cell)
    shapes = [
        (step * i, min(2 * size, size * size // (step * i) // step * step)) for i in range(max(1, size // 2 // step), 2 * size // step + 1)
    ]
    return min(shapes, key=lambda s: abs(math.log(s[0] / s[1] * width / height)))


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """``[C, H, W]`` in [0, 1] to ``[C, height, width]``, antialiased."""
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def cover(image: Tensor, height: int, width: int) -> Tensor:
    """The largest middle part of an image that has the shape, at the size asked for."""
    scale = max(height / image.shape[1], width / image.shape[2])
    image = resize(image, max(height, round(image.shape[1] * scale)), max(width, round(image.shape[2] * scale)))
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def crop_and_pad(picture: Tensor, mask: Tensor | None, size: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """The reference's augmentation (CIDM code; Mix-of-Show): half of the time a square crop, a portrait keeping its top, then the
    whole at a random place on a black canvas, with the area that it covers.
    """
    both = torch.cat([picture, torch.ones_like(picture[:1]) if mask is None else mask])
    scale = size / min(both.shape[1:])
    both = resize(both, max(size, round(both.shape[1] * scale)), max(size, round(both.shape[2] * scale)))
    height, width = both.shape[1:]
    if rng.random() < 0.5:
        if height > width:
            both = both[:, : rng.randint(size, height)]
        else:
            left = rng.randint(0, width - size)
            both = both[:, :, left : left + size]
    height, width = both.shape[1:]
    scale = min((size - 1) / min(height, width), size / max(height, width))
    both = resize(both, max(1, round(height * scale)), max(1, round(width * scale)))
    height, width = both.shape[1:]
    top, left = rng.randint(0, size - height), rng.randint(0, size - width)
    canvas = both.new_zeros(4, size, size)
    canvas[:, top : top + height, left : left + width] = both
    return canvas[:3], canvas[3:]
