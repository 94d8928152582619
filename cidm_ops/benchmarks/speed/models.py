"""Full-size models with random weights, made on the spot: what a benchmark needs when no checkpoint is at hand."""

from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel

from ...bank.concept import Concept
from ...engines.checkpoint import new_text_encoder
from ...engines.diffusers import DiffusersBackbone
from ...lowrank import LowRank
from ...models.family import Family


def random_backbone(family: Family, dtype: torch.dtype = torch.float32) -> DiffusersBackbone:
    """U-Net and text encoders of the family's size; a tiny autoencoder, which training only uses before the first step."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        unet = UNet2DConditionModel(**family.diffusers.model)
        texts: dict[str, Any] = {e.name: new_text_encoder(e, family.diffusers.texts[e.name]) for e in family.encoders}
        vae = AutoencoderTiny(latent_channels=family.latent_channels)
    return DiffusersBackbone((unet, texts, vae), family.diffusers.schedule, torch.device(device), dtype)


def random_concepts(
    backbone: DiffusersBackbone, shapes: dict[str, tuple[int, int]], count: int, rank: int = 4, first: int = 1
) -> list[Concept]:
    """Concepts of random factors, as many earlier ones as a bank may hold; the first of them learned as task ``first``."""
    generator = torch.Generator().manual_seed(first)
    concepts = []
    for task in range(first, first + count):
        factors = {
            n: LowRank(0.01 * torch.randn(out, rank, generator=generator), torch.randn(rank, inn, generator=generator))
            for n, (out, inn) in shapes.items()
        }
        words = (f"<c{task}.1>", f"<c{task}.2>")
        concepts.append(
            Concept(
                name=f"c{task}",
                class_word="dog",
                words=words,
                factors=factors,
                architecture=backbone.architecture,
                fingerprint=backbone.fingerprint,
                task=task,
            )
        )
    return concepts
