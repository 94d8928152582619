"""The autoencoder: TAESD's layers (8x), started as a pass-through of a small colour thumbnail.

From random weights it learns too slowly for a CPU. Started as luma, two chroma and free channels of the 8x8 cells, it
paints a blurred picture at step 0 and only has to add the edges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from ...measure.report import from_pixels
from ...models.sd import DOODLE
from .loop import Optimisation, Session, in_fast_precision, train

CELL = DOODLE.factor
# Rows: luma, blue-yellow, red-cyan. Columns: R, G, B in [0, 1]. Scaled to about unit variance on Doodle pictures.
COLOUR = torch.tensor([[1.25, 2.45, 0.48], [-1.5, -3.0, 4.5], [4.5, -3.8, -0.7]])
NOISE = 0.12
Features = Callable[[Tensor], Sequence[Tensor]]  # of pictures [B, 3, H, W] in [-1, 1], [B, C, ...] of each layer


def pass_through(channels: int = DOODLE.latent_channels) -> AutoencoderTiny:
    """A TAESD-kind autoencoder of latents of so many ``channels``, whose first guess is the 8x8 cell average, in and out."""
    vae = AutoencoderTiny(latent_channels=channels)
    to_latent = torch.cat([COLOUR, torch.zeros(channels - 3, 3)])  # the other channels are free
    middle = to_latent.sum(1) * 0.55
    with torch.no_grad():
        for block in [m for m in vae.modules() if type(m).__name__ == "AutoencoderTinyBlock"]:
            block.conv[-1].weight.zero_()
            block.conv[-1].bias.zero_()
        encoder: list[Any] = [m for m in vae.encoder.layers if isinstance(m, nn.Conv2d)]
        decoder: list[Any] = [m for m in vae.decoder.layers if isinstance(m, nn.Conv2d)]
        _carry(encoder[0], torch.eye(3))
        for conv in encoder[1:-1]:
            conv.weight[:3] = 0
            for c in range(3):
                conv.weight[c, c, 1:, 1:] = 0.25
        _carry(encoder[-1], to_latent)
        encoder[-1].bias.copy_(-middle)
        to_rgb = torch.linalg.pinv(to_latent)
        _carry(decoder[0], to_rgb)
        decoder[0].bias[:3] = to_rgb @ middle
        for conv in decoder[1:]:
            _carry(conv, torch.eye(3))
        decoder[-1].bias.zero_()
    return vae


def _carry(conv: nn.Conv2d, matrix: Tensor) -> None:
    """Make the first outputs of a 3x3 convolution ``matrix`` times the first inputs at the centre."""
    rows, columns = matrix.shape
    if conv.out_channels < conv.in_channels:  # the last of its side
        conv.weight.mul_(0.1)
    conv.weight[:rows] *= 0.1 if rows > 3 else 0.0
    conv.weight[:rows, :columns, 1, 1] = matrix
    if conv.bias is not None:
        conv.bias[:rows] = 0


@dataclass(frozen=True)
class Comparison:
    """How a reconstruction is compared with its picture: L1 of the pixels, and so much of each of these beside it.

    ``edge`` is L1 of the differences along both axes, ``squared`` the squared error, ``perceptual`` the distance of ``features``, layers of
    a network that has learned to see the world.
    """

    edge: float = 0.5
    squared: float = 2.0
    perceptual: float = 0.0
    features: Features | None = None

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of pictures ``[B, 3, H, W]`` in [-1, 1]."""
        found = F.l1_loss(output, target) + self.squared * F.mse_loss(output, target)
        if self.edge:
            found = found + self.edge * sum(F.l1_loss(output.diff(dim=d), target.diff(dim=d)) for d in (2, 3))
        if self.perceptual and self.features is not None:
            with torch.no_grad():
                wanted = self.features(target)
            found = found + self.perceptual * feature_distance(self.features(output), wanted)
        return found


def feature_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """The squared distance of features ``[B, C, ...]``, each place's scaled to unit length, mean over layers (as in LPIPS, Zhang et al.
    2018, without learned weights).
    """
    parts = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean() for a, b in zip(one, other, strict=True)
    ]
    return torch.stack(parts).mean()


@dataclass(frozen=True)
class LatentRecipe:
    """How the autoencoder is trained: pictures in a batch, the noise that its latents bear, how much it counts that every channel has unit
    spread (the decoder squeezes what is large, so scaling channels afterwards is not free), and how pictures are compared.

    Where noise is ``uneven``, each picture's is a random part of it: latents whose decoder has learned to see through much noise hold what
    they say in a form that a U-Net can paint (Yang et al. 2025, Latent Denoising Makes Good Visual Tokenizers).
    """

    batch: int = 16
    lr: float = 1e-3
    noise: float = NOISE
    uneven: bool = False
    muon: bool = False
    spread: float = 0.0
    comparison: Comparison = Comparison()

    def noised(self, latent: Tensor, generator: torch.Generator) -> Tensor:
        """The latents ``[B, C, h, w]`` as the decoder gets them."""
        strength: Tensor | float = self.noise
        if self.uneven:
            strength = strength * torch.rand(len(latent), 1, 1, 1, generator=generator, device=latent.device)
        return latent + strength * torch.randn(latent.shape, generator=generator, device=latent.device)


def crops(pictures: np.ndarray, rng: np.random.Generator, batch: int, size: int, device: torch.device) -> Tensor:
    """Random crops ``[batch, 3, size, size]`` in [-1, 1], aligned to the latent grid."""
    out = np.empty((batch, size, size, 3), np.uint8)
    span = (pictures.shape[1] - size) // CELL + 1
    for i, (n, y, x) in enumerate(
        zip(rng.integers(len(pictures), size=batch), *(rng.integers(span, size=batch) * CELL for _ in "yx"), strict=True)
    ):
        out[i] = pictures[n, y : y + size, x : x + size]
    return torch.from_numpy(out).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def learn_latents(
    vae: AutoencoderTiny, pictures: np.ndarray, session: Session, *, steps: int, recipe: LatentRecipe = LatentRecipe()
) -> None:
    """Train encoder and decoder together, then normalise the latents to zero mean and unit variance."""
    device = vae.device
    vae.to(memory_format=torch.channels_last)

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        picture = crops(pictures, rng, recipe.batch, 64, device)
        with in_fast_precision(device):
            latent = vae.encode(picture).latents
            output = vae.decode(recipe.noised(latent, generator)).sample
        loss = recipe.comparison.loss(output.float(), picture) + 1e-3 * latent.float().pow(2).mean()
        if recipe.spread:
            loss = loss + recipe.spread * (latent.float().std((0, 2, 3)) - 1).square().mean()
        return loss

    average = train("autoencoder", vae, loss_at, session, Optimisation(steps, recipe.lr, ema=0.99, muon=recipe.muon))
    with torch.no_grad():
        for k, p in vae.named_parameters():
            p.copy_(average[k])
    normalise(vae, pictures[:: max(1, len(pictures) // 256)])


@torch.no_grad()
def normalise(vae: AutoencoderTiny, pictures: np.ndarray) -> None:
    """Fold mean and scale of the latents into the last encoder and first decoder convolution."""
    latent = encode(vae, pictures).float()
    mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    last, first = vae.encoder.layers[-1], vae.decoder.layers[0]
    last.bias.copy_((last.bias - mean) / std)
    last.weight.div_(std[:, None, None, None])
    first.bias.add_(torch.einsum("oikl,i->o", first.weight, mean))
    first.weight.mul_(std[None, :, None, None])


@torch.no_grad()
def encode(vae: AutoencoderTiny, pictures: np.ndarray, batch: int = 64) -> Tensor:
    """Latents ``[N, C, h, w]`` of pictures ``[N, H, W, 3]`` uint8."""
    out = []
    for start in range(0, len(pictures), batch):
        part = pictures[start : start + batch]
        picture = from_pixels(part, vae.device)
        with in_fast_precision(vae.device):
            out.append(vae.encode(picture.contiguous(memory_format=torch.channels_last)).latents)
    return torch.cat(out)


@dataclass(frozen=True)
class Painted:
    """Latents ``[N, C, h, w]`` that a U-Net painted, and the ``pictures [N, H, W, 3]`` uint8 that they should show."""

    latents: Tensor
    pictures: np.ndarray

    def crops(self, rng: np.random.Generator, batch: int, cells: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Random crops of ``cells`` latent cells: latents ``[batch, C, cells, cells]`` and pictures in [-1, 1]."""
        span = self.latents.shape[-1] - cells + 1
        latents, pictures = [], []
        for n, y, x in zip(rng.integers(len(self.latents), size=batch), *(rng.integers(span, size=batch) for _ in "yx"), strict=True):
            latents.append(self.latents[n, :, y : y + cells, x : x + cells])
            pictures.append(self.pictures[n, y * CELL : (y + cells) * CELL, x * CELL : (x + cells) * CELL])
        shown = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        return torch.stack(latents).to(device).float(), shown.contiguous(memory_format=torch.channels_last)


def sharpen_decoder(
    vae: AutoencoderTiny,
    pictures: np.ndarray,
    session: Session,
    *,
    steps: int,
    recipe: LatentRecipe = LatentRecipe(lr=5e-4),
    painted: Painted | None = None,
) -> None:
    """Train the decoder alone on the frozen encoder: the latents of a U-Net in training do not move.

    With ``painted`` latents, half of each batch is of those.
    """
    device = vae.device
    vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    half = recipe.batch // 2 if painted else 0

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        picture = crops(pictures, rng, recipe.batch - half, 64, device)
        with in_fast_precision(device), torch.no_grad():
            latent = replace(recipe, uneven=True).noised(vae.encode(picture).latents, generator)
        if painted:
            own, shown = painted.crops(rng, half, 64 // CELL, device)
            latent, picture = torch.cat([latent, own.to(latent)]), torch.cat([picture, shown])
        with in_fast_precision(device):
            output = vae.decode(latent).sample
        return recipe.comparison.loss(output.float(), picture)

    average = train("decoder", vae, loss_at, session, Optimisation(steps, recipe.lr, muon=recipe.muon))
    with torch.no_grad():
        for k, p in vae.named_parameters():
            if k in average:
                p.copy_(average[k])
