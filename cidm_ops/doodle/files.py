"""The weights that ship: seven small fp16 files, and the sizes of the models they fill."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..models import clip
from ..models.sd import DOODLE

WEIGHTS = Path(__file__).parent / "weights"
TEN = Path(__file__).parent / "ten"  # a bank: the ten concepts, learned one after another

ENCODER = DOODLE.encoder()
TEXT_CONFIG = DOODLE.diffusers.texts[ENCODER.name]
VISION_CONFIG: dict[str, Any] = dict(
    hidden_size=192,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=128,
    patch_size=8,  # small enough for a mark; the reader has 16
    projection_dim=128,
    hidden_act="quick_gelu",
)
# The reader compares pictures with captions, for which a small text side does.
READER_TEXT: dict[str, Any] = {**TEXT_CONFIG, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "projection_dim": 128}
JUDGE = WEIGHTS / "parts.safetensors"  # the judge of parts
RARE_STD = 0.02
SCALE = 20.0  # of cosines in the spaces of both towers: they learned captions at the temperature 0.05


def _load(name: str) -> dict[str, Tensor]:
    file = WEIGHTS / f"{name}.safetensors"
    if not file.exists():
        raise FileNotFoundError(f"{file.name}: a part of the Doodle model is missing from {WEIGHTS}: install the pack again")
    return {k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()}


def full_token_table(ids: Tensor, rows: Tensor) -> Tensor:
    """Token table ``[V, D]``: trained ``rows [n, D]`` at ``ids [n]``, seeded noise elsewhere.

    Words the world does not use are noise of the size the model met in training as words without meaning.
    """
    noise = np.random.default_rng(0).standard_normal((clip.VOCABULARY, rows.shape[1]), dtype=np.float32) * RARE_STD
    table = torch.from_numpy(noise).half().float()
    table[ids] = rows
    return table


def with_table(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder as it ships, with the whole token table in the place of its trained rows."""
    table = full_token_table(state.pop("token_ids").long(), state.pop("token_rows"))
    return state | {"text_model.embeddings.token_embedding.weight": table}


def unet_state() -> dict[str, Tensor]:
    """Names of diffusers' ``UNet2DConditionModel``."""
    return _load("unet")


def text_state() -> dict[str, Tensor]:
    """Names ``text_model.*`` of a CLIP text model, with the whole token table."""
    return with_table(_load("text"))


def vae_state() -> dict[str, Tensor]:
    """Names of diffusers' ``AutoencoderTiny``."""
    return _load("vae")


def vision_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of an image tower with such weights, which say how large a patch is."""
    return {**VISION_CONFIG, "patch_size": state["vision_model.embeddings.patch_embedding.weight"].shape[-1]}


def vision_state() -> dict[str, Tensor]:
    """Names of transformers' ``CLIPVisionModelWithProjection``: the image tower."""
    return _load("vision")


def reader_state() -> dict[str, Tensor]:
    """Names of transformers' ``CLIPVisionModelWithProjection``: the reader's image side."""
    return {k: v for k, v in _load("reader").items() if not k.startswith("text.")}


def caption_state() -> dict[str, Tensor]:
    """Names of transformers' ``CLIPTextModelWithProjection``: the reader's caption side."""
    state = with_table({k.removeprefix("text."): v for k, v in _load("reader").items() if k.startswith("text.")})
    return state | {"text_projection.weight": state.pop("projection.weight")}


def bridge_weight() -> Tensor:
    """The bridge ``[E, D]`` from the end of a text, as the U-Net's text encoder leaves it, into the image tower's space."""
    return _load("bridge")["weight"]
