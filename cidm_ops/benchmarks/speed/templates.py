"""Templates for weaving: plain Doodle things of the concepts' classes, rendered side by side, so that everything about them is known."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...doodle.concepts import CONCEPTS
from ...doodle.figures import COLOURS, plain
from ...doodle.world import IN_PLACE, SIZE, Scene, arrange, render
from ...measure.report import from_pixels
from .compositions import Composition, compositions

PLACE_OF = {words[0]: place for place, words in IN_PLACE.items()}
EDGE = 8  # columns at either side of a cell, where nothing stands
UNLIKE = 0.35  # how far a channel in [-1, 1] is from what stands beside, in a figure


@dataclass(frozen=True)
class RenderedTemplate:
    """A template: the concepts that are to be woven in and their place, its picture ``[3, H, W]`` in [-1, 1], the mask ``[H, W]`` of each
    thing over all of it, and what it shows in plain words.
    """

    scene: Composition
    picture: Tensor
    masks: Tensor
    words: str


def templates(count: int, seed: int = 0) -> list[RenderedTemplate]:
    """Scenes of two and three concepts, in place of which plain things of their classes stand; the same for the same seed."""
    scenes = [scene for scene in compositions(2 * count + 2, seed) if len(scene.names) < 4][:count]
    return [_rendered(scene, np.random.default_rng((seed, 83, i))) for i, scene in enumerate(scenes)]


def _rendered(scene: Composition, rng: np.random.Generator) -> RenderedTemplate:
    place, backdrop = PLACE_OF[scene.place], int(rng.integers(2**31))
    cells, masks, words = [], [], []
    for name in scene.names:
        kind, colour = CONCEPTS[name].class_word, str(rng.choice(list(COLOURS)))
        look = plain(kind, COLOURS[colour]).with_proportions(*rng.uniform(-0.8, 0.8, 3))
        picture, (mask,) = render(Scene(arrange([look], [kind], rng), place, seed=backdrop))
        cells.append(picture)
        masks.append(mask)
        words.append(f"a {colour} {kind}")
    whole = np.zeros((len(masks), SIZE, SIZE * len(masks)), np.uint8)
    for i, mask in enumerate(masks):
        whole[i, :, i * SIZE : (i + 1) * SIZE] = mask
    text = f"{', '.join(words[:-1])} and {words[-1]} {scene.place}"
    return RenderedTemplate(scene, from_pixels(np.concatenate(cells, 1)[None])[0], torch.from_numpy(whole).float() / 255, text)


def cells_of(picture: Tensor, count: int) -> list[Tensor]:
    """The places ``[3, H, W / count]`` of the things in a picture, from left to right."""
    return list(picture.chunk(count, 2))


def figure(cell: Tensor) -> Tensor:
    """What stands in a cell ``[3, H, W]``, ``[H, W]`` of bool: what differs in any channel from what is beside it in its row."""
    beside = torch.cat([cell[..., :EDGE], cell[..., -EDGE:]], 2).median(2, keepdim=True).values
    return (cell - beside).abs().amax(0) > UNLIKE


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two figures ``[H, W]`` of bool; 0 of two that are empty."""
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise in dB of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))
