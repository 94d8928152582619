"""What a decoder does to a picture, done to renderings: who learns to see from them must not go by sharpness."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def worn(seen: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Blur and grain, as a decoder leaves them, so that sharpness does not count."""
    if rng.random() < 0.5:
        small = F.interpolate(seen, scale_factor=float(rng.uniform(0.4, 0.9)), mode="bilinear", antialias=True)
        seen = F.interpolate(small, seen.shape[-2:], mode="bilinear")
    return seen + float(rng.uniform(0, 0.08)) * torch.randn(seen.shape, generator=generator, device=seen.device)
