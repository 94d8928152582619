"""A photo edited with concepts, on any backbone: places are cut out, painted over where a mask is, and put back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbone import Backbone
from ..bank.bank import Bank
from ..method.editing import MARGIN, feathered, find_place
from ..method.regions import RegionMask, cells
from .compose import read
from .composition import compose_regions
from .paint import Photo, SamplingConfig, paint_latents, unit_noise

FEATHER = 8  # pixels of the photo


@dataclass(frozen=True)
class Edit:
    """What is to be painted into a ``photo [3, H, W]`` in [-1, 1]: in each of ``holes``, a prompt and its mask ``[H, W]``.

    ``around`` says what is seen beside them; without it a single hole needs no region, only its own prompt. ``denoise`` 1 inserts, less
    keeps the shape of what is there. ``margin`` and ``size`` are those of ``find_place``, a size of 0 that of the model; the edges of masks
    fade over ``feather`` pixels. Raises ``ValueError`` for no hole.
    """

    photo: Tensor
    holes: Sequence[tuple[str, Tensor]]
    around: str = ""
    denoise: float = 1.0
    margin: float = MARGIN
    size: int = 0
    feather: int = FEATHER

    def __post_init__(self) -> None:
        if not self.holes:
            raise ValueError("there is no mask: give one with a prompt for each thing that is to be painted")


@torch.no_grad()
def edit(
    backbone: Backbone,
    bank: Bank,
    wanted: Edit,
    config: SamplingConfig | None = None,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> tuple[Tensor, list[str]]:
    """The edited photo ``[3, H, W]`` in [-1, 1], all holes painted in one pass, and warnings. Outside of the masks and their soft edges
    every pixel stays as it is.

    Raises what ``find_place`` and ``compose_regions`` do.
    """
    config, photo = config or SamplingConfig(), wanted.photo[None].cpu()
    every = torch.stack([mask.cpu() for _, mask in wanted.holes]).amax(0)
    place = find_place(every, wanted.margin, wanted.size or backbone.family.size, backbone.family.cell)
    height, width = backbone.family.latent_shape(*place.shown)[1:]
    parts = [(text, RegionMask(place.cut(mask[None, None].cpu())[0, 0])) for text, mask in wanted.holes]
    prompt, regions = (parts[0][0], []) if len(parts) == 1 and not wanted.around else (wanted.around, parts)
    composition = compose_regions(backbone, bank, prompt, regions, config.aggregation)
    clean = backbone.encode_image(place.cut(photo).to(backbone.device)).float()
    over = Photo(clean, cells(place.cut(every[None, None])[0, 0], height, width), wanted.denoise)
    noise = unit_noise(backbone.family, seed, 1, *place.shown)
    latents = paint_latents(backbone, composition, noise, config, on_step, read(bank, config.negative), over)
    edited = backbone.decode_latent(latents).float().cpu().clamp(-1, 1)
    return place.put_back(photo, edited, feathered(every, wanted.feather))[0], composition.warnings
