"""The autoencoder: TAESD's layers (8x), started as a pass-through of a small colour thumbnail.

From random weights it learns too slowly for a CPU. Started as luma, two chroma and free channels of the 8x8 cells, it
paints a blurred picture at step 0 and only has to add the edges.
"""

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.sd import DOODLE
from .loop import Optimisation, Session, in_fast_precision, train

CHANNELS, CELL = DOODLE.latent_channels, DOODLE.factor
# Rows: luma, blue-yellow, red-cyan, then free ones. Columns: R, G, B in [0, 1]. Scaled to about unit variance on Doodle pictures.
TO_LATENT = torch.cat([torch.tensor([[1.25, 2.45, 0.48], [-1.5, -3.0, 4.5], [4.5, -3.8, -0.7]]), torch.zeros(CHANNELS - 3, 3)])
MIDDLE = TO_LATENT.sum(1) * 0.55
NOISE = 0.12


def pass_through() -> AutoencoderTiny:
    """A TAESD-kind autoencoder whose first guess is the 8x8 cell average, in and out."""
    vae = AutoencoderTiny(**DOODLE.diffusers.vae)
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
        _carry(encoder[-1], TO_LATENT)
        encoder[-1].bias.copy_(-MIDDLE)
        to_rgb = torch.linalg.pinv(TO_LATENT)
        _carry(decoder[0], to_rgb)
        decoder[0].bias[:3] = to_rgb @ MIDDLE
        for conv in decoder[1:]:
            _carry(conv, torch.eye(3))
        decoder[-1].bias.zero_()
    return vae


def _carry(conv: nn.Conv2d, matrix: Tensor) -> None:
    """Make the first outputs of a 3x3 convolution ``matrix`` times the first inputs at the centre."""
    rows, columns = matrix.shape
    if conv.out_channels <= CHANNELS:  # the last of its side
        conv.weight.mul_(0.1)
    conv.weight[:rows] *= 0.1 if rows > 3 else 0.0
    conv.weight[:rows, :columns, 1, 1] = matrix
    if conv.bias is not None:
        conv.bias[:rows] = 0


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of the pixels and of their differences along both axes (edges), pictures in [-1, 1]."""
    edges = sum(F.l1_loss(output.diff(dim=d), target.diff(dim=d)) for d in (2, 3))
    return F.l1_loss(output, target) + 2 * F.mse_loss(output, target) + 0.5 * edges


def crops(pictures: np.ndarray, rng: np.random.Generator, batch: int, size: int, device: torch.device) -> Tensor:
    """Random crops ``[batch, 3, size, size]`` in [-1, 1], aligned to the latent grid."""
    out = np.empty((batch, size, size, 3), np.uint8)
    span = (pictures.shape[1] - size) // CELL + 1
    for i, (n, y, x) in enumerate(
        zip(rng.integers(len(pictures), size=batch), *(rng.integers(span, size=batch) * CELL for _ in "yx"), strict=True)
    ):
        out[i] = pictures[n, y : y + size, x : x + size]
    return torch.from_numpy(out).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def learn_latents(vae: AutoencoderTiny, pictures: np.ndarray, session: Session, *, steps: int, batch: int = 16, lr: float = 1e-3) -> None:
    """Train encoder and decoder together, then normalise the latents to zero mean and unit variance."""
    device = vae.device
    vae.to(memory_format=torch.channels_last)

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        picture = crops(pictures, rng, batch, 64, device)
        with in_fast_precision(device):
            latent = vae.encode(picture).latents
            noise = torch.randn(latent.shape, generator=generator, device=device)
            output = vae.decode(latent + NOISE * noise).sample
        return reconstruction_loss(output.float(), picture) + 1e-3 * latent.float().pow(2).mean()

    average = train("autoencoder", vae, loss_at, session, Optimisation(steps, lr, ema=0.99))
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
        picture = torch.from_numpy(np.asarray(part)).to(vae.device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        with in_fast_precision(vae.device):
            out.append(vae.encode(picture.contiguous(memory_format=torch.channels_last)).latents)
    return torch.cat(out)


def sharpen_decoder(vae: AutoencoderTiny, pictures: np.ndarray, session: Session, *, steps: int, batch: int = 16, lr: float = 5e-4) -> None:
    """Train the decoder alone on the frozen encoder: the latents of a U-Net in training do not move."""
    device = vae.device
    vae.to(memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        picture = crops(pictures, rng, batch, 64, device)
        with in_fast_precision(device):
            with torch.no_grad():
                latent = vae.encode(picture).latents
                strength = NOISE * torch.rand(batch, 1, 1, 1, generator=generator, device=device)
                latent = latent + strength * torch.randn(latent.shape, generator=generator, device=device)
            output = vae.decode(latent).sample
        return reconstruction_loss(output.float(), picture)

    average = train("decoder", vae, loss_at, session, Optimisation(steps, lr))
    with torch.no_grad():
        for k, p in vae.named_parameters():
            if k in average:
                p.copy_(average[k])
