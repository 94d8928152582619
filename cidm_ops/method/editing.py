"""Where a picture is edited: the part of it that the model sees, at a size that suits it, and how that comes back into the picture.

A thing needs about the size that a model was made for, so a small place is cut out with some surroundings and enlarged; what comes back is
only what the mask and a soft edge around it cover.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

COVERED = 0.5  # of a mask, to be edited
MARGIN = 0.5  # of the longer side of what is covered, on every side


@dataclass(frozen=True)
class Place:
    """The part of a picture that is edited: ``top, left, height, width`` in pixels, and its height and width as ``shown`` to the model."""

    top: int
    left: int
    height: int
    width: int
    shown: tuple[int, int]

    def cut(self, pictures: Tensor) -> Tensor:
        """That part of ``pictures [B, C, H, W]``, ``[B, C, h, w]`` as it is shown."""
        part = pictures[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return resize(part, self.shown)

    def put_back(self, pictures: Tensor, edited: Tensor, weight: Tensor) -> Tensor:
        """``pictures [B or 1, C, H, W]`` with ``edited [B, C, h, w]`` in that part, as far as ``weight [H, W]`` says. Where it is 0 every
        pixel stays as it is, to the last bit.
        """
        rows, columns = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        part = resize(edited, (self.height, self.width)).to(pictures)
        whole = pictures.expand(len(part), -1, -1, -1).clone()
        own, old = weight[rows, columns].to(pictures), whole[..., rows, columns]
        whole[..., rows, columns] = torch.where(own > 0, old + own * (part - old), old)
        return whole


def find_place(mask: Tensor, margin: float = MARGIN, size: int = 0, cell: int = 8) -> Place:
    """The place around what ``mask [H, W]`` covers, with ``margin`` times the longer side of that around it, as far as the picture goes.

    It is shown at about ``size * size`` pixels, or at its own size if that is 0; sides are multiples of ``cell``. Raises ``ValueError`` for
    a mask that covers nothing, and a margin or size below 0.
    """
    if margin < 0 or size < 0:
        raise ValueError(f"margin {margin:g} and size {size}: expected 0 or more")
    covered = mask >= COVERED
    if not covered.any():
        raise ValueError("the mask covers nothing, so there is nothing to edit: draw it where something is to be painted")
    sides = []
    for axis, whole in ((1, mask.shape[0]), (0, mask.shape[1])):
        lines = covered.any(axis).nonzero().flatten()
        sides.append((int(lines[0]), int(lines[-1]) + 1, whole))
    around = round(margin * max(last - first for first, last, _ in sides))
    (top, height), (left, width) = (_spread(first - around, last + around, whole, cell) for first, last, whole in sides)
    scale = size / (height * width) ** 0.5 if size else 1.0
    shown = max(cell, round(height * scale / cell) * cell), max(cell, round(width * scale / cell) * cell)
    return Place(top, left, height, width, shown)


def _spread(first: int, last: int, whole: int, cell: int) -> tuple[int, int]:
    """Where a span begins and how long it is, within ``whole`` pixels and of a multiple of ``cell`` where there is room for it."""
    first, last = max(0, first), min(whole, last)
    length = min(whole, -(-(last - first) // cell) * cell)
    return max(0, min(first - (length - last + first) // 2, whole - length)), length


def resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """``pictures [B, C, H, W]`` at another size, within the values that they have; those of that size as they are."""
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    made = F.interpolate(pictures.float(), size, mode="bicubic", antialias=True, align_corners=False).to(pictures)
    return made.clamp(pictures.min(), pictures.max())


def feathered(mask: Tensor, feather: int) -> Tensor:
    """How much of what was edited comes back, ``[H, W]`` in [0, 1]: all where ``mask [H, W]`` covers, none from ``feather`` pixels on."""
    covered = (mask >= COVERED).float()
    reach = feather // 2
    if not reach:
        return covered
    grown = F.max_pool2d(covered[None, None], 2 * reach + 1, 1, reach)
    padded = F.pad(grown, (reach, reach, reach, reach), mode="replicate")  # at the picture's edges nothing fades
    return F.avg_pool2d(padded, 2 * reach + 1, 1)[0, 0].clamp(0, 1)
