"""Prior preservation: pictures of the plain class, learned along with the concept so that the class word keeps its meaning
(Ruiz et al. 2023, DreamBooth).
"""

from collections.abc import Callable, Sequence

import torch

from ..backbone import Backbone, TransformerBackbone
from ..painting.sampling import sample
from ..tokens import read_plain
from .canvases import CutOut, cut_common
from .crops import resize
from .dataset import Dataset

STEPS = 25
COMMON = ("dog", "cat", "chair", "car", "cup", "tree")  # things that every base knows


@torch.no_grad()
def imagine(
    backbone: Backbone | TransformerBackbone,
    class_word: str,
    count: int,
    size: tuple[int, int],
    seed: int,
    on_picture: Callable[[int, int], None] = lambda done, count: None,
) -> Dataset:
    """Has the base itself paint ``count`` pictures of ``class_word``, of ``size`` (height, width) in pixels."""
    caption = f"a {class_word}"
    wanted, nothing = (read_plain(backbone, text) for text in (caption, ""))
    pictures = []
    for number in range(count):
        shape = backbone.family.latent_shape(*size)
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed + number)).to(backbone.device)
        latent = sample(backbone, wanted, nothing, noise, steps=STEPS, guidance=backbone.family.objective.cfg)
        pictures.append(backbone.decode_latent(latent)[0].float().cpu() / 2 + 0.5)
        on_picture(number + 1, count)
    return Dataset(pictures, [class_word] * count)


def paint_common(
    backbone: Backbone,
    words: Sequence[str],
    side: int,
    seed: int,
    on_picture: Callable[[int, int], None] = lambda done, count: None,
) -> tuple[CutOut, ...]:
    """Has the base paint every common thing once, and makes it ``side`` pixels large. Nothing says where it is: the picture counts."""
    size, found = backbone.family.whole_cells(backbone.family.size, backbone.family.size), []
    for number, thing in enumerate(words):
        picture = imagine(backbone, thing, 1, size, seed + number).pictures[0]
        found += cut_common({thing: [(resize(picture, side, side), None)]})
        on_picture(number + 1, len(words))
    return tuple(found)
