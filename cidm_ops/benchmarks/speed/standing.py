"""A dog that stands on one side of a place of the Doodle world: how it is drawn, and what a picture shows of its side and its coat."""

import numpy as np
import torch
from torch import Tensor

from ...doodle.figures import Look
from ...doodle.world import Scene, Thing, render

SIDES = {"on the left": -1, "on the right": 1}
TORSO = slice(80, 90), 8, 29  # rows, half the columns, and how far from the middle: the torso of any dog that ``rendered`` draws


def render_standing(look: Look | None, place: str, side: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Render a dog ``[128, 128, 3]`` uint8 on one side of a place, and its mask ``[128, 128]`` uint8."""
    assert look is not None
    half = rng.uniform(26, 34)
    x, y = 64 + SIDES[side] * rng.uniform(26, 32), rng.uniform(98, 110) - 0.9 * half
    thing = Thing(look, "dog", x, y, half, bool(rng.random() < 0.5), float(rng.uniform(-0.06, 0.06)))
    picture, masks = render(Scene((thing,), place, seed=int(rng.integers(2**31))))
    return picture, masks[0]


def sides_of(pictures: Tensor) -> list[str]:
    """Tell on which side the one thing in pictures ``[N, 3, H, W]`` is: the centre of what differs from its row, where things stand."""
    unlike = (pictures - pictures.median(3, keepdim=True).values).abs().sum(1)[:, 40:115].square().sum(1)
    centres = (unlike * torch.linspace(-1, 1, unlike.shape[1])).sum(1) / unlike.sum(1)
    return [list(SIDES)[int(c > 0)] for c in centres.tolist()]


def coats_of(pictures: Tensor) -> Tensor:
    """The colour ``[N, 3]`` in 0..255 of the coats in pictures ``[N, 3, 128, 128]``: the medians over where a torso is on that side."""
    rows, half, aside = TORSO
    middles = [64 + SIDES[side] * aside for side in sides_of(pictures)]
    windows = torch.stack([p[:, rows, x - half : x + half].flatten(1) for p, x in zip(pictures, middles, strict=True)])
    return (windows.median(2).values.clamp(-1, 1) + 1) * 127.5


def coat_distances(pictures: Tensor, look: Look | None) -> Tensor:
    """How far the coats in pictures ``[N, 3, 128, 128]`` are from a look's body, ``[N]``: Euclidean, of RGB in 0..255."""
    assert look is not None
    return (coats_of(pictures) - torch.tensor(look.body)).norm(dim=1)
