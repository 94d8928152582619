"""What a model makes of noise, aligned with what a judge of parts sees in the clean picture (REPA, Yu et al. 2025).

The features that a painting needs, which thing, which mark, which colour, are learned much sooner when they are asked for than when only
the error of the picture asks for them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Lumina2Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from ...engines.parts import PartsJudge
from ...measure.report import from_pixels
from .loop import in_fast_precision
from .renderings import sharded

AsMap = Callable[[Tensor], Tensor]  # of a block's output, to [B, C, h, w]


class Alignment(nn.Module):
    """Projects features of a block, which it holds after each call of that, to ``sights`` channels.

    ``as_map`` makes features ``[B, width, h, w]`` of the block's output; each of their cells stands for ``patch`` times as many rows and
    columns of sights.
    """

    def __init__(self, block: nn.Module, width: int, sights: int, patch: int = 1, as_map: AsMap = lambda output: output):
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.SiLU(), nn.Conv2d(2 * width, sights * patch**2, 1))
        self.patch, self.as_map = patch, as_map
        self.features: Tensor | None = None
        block.register_forward_hook(self._hold)

    def _hold(self, block: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        self.features = self.as_map(output)

    def forward(self, sights: Tensor) -> Tensor:
        """One minus the mean cosine of what the block saw last and the ``sights [B, C, h, w]`` of the same pictures."""
        assert self.features is not None
        found = F.pixel_shuffle(self.project(self.features), self.patch).float()
        self.features = None
        return 1 - F.cosine_similarity(found, sights.float(), dim=1).mean()


def align_unet(unet: UNet2DConditionModel, sights: int) -> Alignment:
    """An alignment where the lower levels have been put together on the finest grid."""
    return Alignment(unet.up_blocks[-2], int(unet.config.block_out_channels[1]), sights)


def align_transformer(model: Lumina2Transformer2DModel, sights: int) -> Alignment:
    """An alignment in the middle of the blocks that text and image go through together, the image's tokens last, each of several cells."""
    side = int(model.config.sample_size // model.config.patch_size)

    def as_map(tokens: Tensor) -> Tensor:
        """The last tokens of ``[B, N, C]`` as ``[B, C, side, side]``."""
        return tokens[:, -(side**2) :].mT.unflatten(2, (side, side))

    middle = model.layers[len(model.layers) // 2]
    return Alignment(middle, int(model.config.hidden_size), sights, int(model.config.patch_size), as_map)


def sights_of(folder: Path, name: str, pictures: np.ndarray, load: Callable[[], PartsJudge], device: torch.device) -> Tensor:
    """What the judge's trunk makes of all pictures of that name at an eighth of their side ``[N, C, h, w]`` fp16, every channel to mean 0
    and spread 1; see ``sharded``.
    """
    batch = 64 if device.type == "cpu" else 1024

    @torch.no_grad()
    def see(judge: PartsJudge, some: np.ndarray) -> Tensor:
        found = []
        for start in range(0, len(some), batch):
            part = from_pixels(some[start : start + batch], device)
            with in_fast_precision(device):
                found.append(judge.features(part.contiguous(memory_format=torch.channels_last))[-1].half())
        return torch.cat(found)

    sights = sharded(folder, f"{name}-sights", pictures, load, see, device)
    some = sights[:: max(1, len(sights) // 1000)].float()
    mean, spread = some.mean((0, 2, 3), keepdim=True), some.std((0, 2, 3), keepdim=True)
    for part in sights.split(1000):
        part.copy_((part - mean) / spread)
    return sights
