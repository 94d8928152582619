"""Prior preservation: pictures of the plain class, learned along with the concept so that the class word keeps its meaning
(Ruiz et al. 2023, DreamBooth).
"""

from collections.abc import Callable

import torch

from ..backbone import Backbone
from ..painting.sampling import sample
from ..tokens import encode_layerwise
from .dataset import Dataset


@torch.no_grad()
def imagined(
    backbone: Backbone,
    class_word: str,
    count: int,
    height: int,
    width: int,
    seed: int,
    on_picture: Callable[[int, int], None] = lambda done, count: None,
    *,
    steps: int = 25,
    guidance: float = 5.0,
) -> Dataset:
    """``count`` pictures of ``class_word`` as the base itself paints them, of ``height`` x ``width`` pixels."""
    caption = f"a {class_word}"
    wanted, plain = (encode_layerwise(backbone, [text], {}) for text in (caption, ""))
    pictures = []
    for number in range(count):
        shape = backbone.family.latent_shape(height, width)
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed + number)).to(backbone.device)
        latent = sample(backbone, wanted, plain, noise, steps=steps, guidance=guidance)
        pictures.append(backbone.decode_latent(latent)[0].float().cpu() / 2 + 0.5)
        on_picture(number + 1, count)
    return Dataset(pictures, [class_word] * count)
