"""What the U-Net makes of noise, aligned with what a judge of parts sees in the clean picture (REPA, Yu et al. 2025).

The features that a painting needs, which thing, which mark, which colour, are learned much sooner when they are asked for than when only
the error of the picture asks for them. They are taken where the lower levels have been put together on the finest grid.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from ...engines.parts import PartsJudge
from ...measure.report import from_pixels
from .loop import in_fast_precision
from .renderings import sharded


class Alignment(nn.Module):
    """Projects the U-Net's features, which it holds after each call of the U-Net, to ``sights`` channels."""

    def __init__(self, unet: UNet2DConditionModel, sights: int):
        super().__init__()
        width = int(unet.config.block_out_channels[1])
        self.project = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.SiLU(), nn.Conv2d(2 * width, sights, 1))
        self.features: Tensor | None = None
        unet.up_blocks[-2].register_forward_hook(self._hold)  # its output is on the finest grid

    def _hold(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.features = output

    def forward(self, sights: Tensor) -> Tensor:
        """One minus the mean cosine of what the U-Net saw last and the ``sights [B, C, h, w]`` of the same pictures."""
        assert self.features is not None
        found = self.project(self.features).float()
        self.features = None
        return 1 - F.cosine_similarity(found, sights.float(), dim=1).mean()


def sights_of(folder: Path, name: str, pictures: np.ndarray, load: Callable[[], PartsJudge]) -> Tensor:
    """What the judge's trunk makes of all pictures of that name at an eighth of their side ``[N, C, h, w]`` fp16, every channel to mean 0
    and spread 1; kept in shards, which processes share out.
    """

    @torch.no_grad()
    def see(judge: PartsJudge, some: np.ndarray) -> Tensor:
        found = []
        for start in range(0, len(some), 64):
            part = from_pixels(some[start : start + 64], next(judge.parameters()).device)
            with in_fast_precision(part.device):
                found.append(judge.features(part.contiguous(memory_format=torch.channels_last))[-1].half().cpu())
        return torch.cat(found)

    sights = sharded(folder, f"{name}-sights", pictures, load, see)
    some = sights[:: max(1, len(sights) // 1000)].float()
    mean, spread = some.mean((0, 2, 3), keepdim=True), some.std((0, 2, 3), keepdim=True)
    for part in sights.split(1000):
        part.copy_((part - mean) / spread)
    return sights
