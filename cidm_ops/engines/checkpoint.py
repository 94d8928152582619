"""A Stable Diffusion 1 or SDXL checkpoint in one file of the original layout, as diffusers' modules, without a download.

The shapes are known (``models/sd.py``); diffusers itself would fetch them. The names are translated by diffusers.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ..models.family import Encoder, Family
from ..models.sd import SD1, SDXL

Modules = tuple[Any, dict[str, Any], Any]  # U-Net, text encoders by name, autoencoder

TEXT_WIDTH_KEYS = [f"model.diffusion_model.input_blocks.{i}.1.transformer_blocks.0.attn2.to_k.weight" for i in (1, 4)]
OPEN_CLIP_KEY = "conditioner.embedders.1.model."
INPUT_KEY = "model.diffusion_model.input_blocks.0.0.weight"


def read_checkpoint(path: Path) -> Modules:
    """U-Net, text encoders and autoencoder of a single-file checkpoint, in the file's own floating-point type.

    Raises ValueError if the file is damaged, holds more than tensors, is no complete checkpoint, or of another architecture.
    """
    return from_original(read_state(path), path)


def from_original(state: dict[str, Tensor], path: Path) -> Modules:
    """The same from the tensors of such a file; ``path`` is only named in errors."""
    family = family_of(path, state)
    try:
        return _translated(family, state, path)
    except KeyError as error:  # diffusers' translation missed one
        raise ValueError(f"{path} is incomplete: it lacks {error.args[0]} of {family.title}") from error


def _translated(family: Family, state: dict[str, Tensor], path: Path) -> Modules:
    own = family.diffusers
    unet = filled(lambda: UNet2DConditionModel(**own.model), convert_ldm_unet_checkpoint(state, dict(own.model)), path)
    texts = {}
    for encoder in family.encoders:
        config = own.texts[encoder.name]
        if encoder.pooled:
            translated = convert_open_clip_checkpoint(_Configured(CLIPTextConfig(**config)), state, OPEN_CLIP_KEY)
        else:
            translated = convert_ldm_clip_checkpoint(state)
        texts[encoder.name] = text_model(encoder, config, translated, path)
    vae = filled(lambda: AutoencoderKL(**own.vae), convert_ldm_vae_checkpoint(state, dict(own.vae)), path)
    return unet, texts, vae


class _Configured:
    """All that diffusers' translation looks at of a text model."""

    def __init__(self, config: CLIPTextConfig):
        self.config = config


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .ckpt file; of the latter nothing but tensors is ever loaded."""
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is damaged or holds Python objects, which are not loaded: convert it to .safetensors") from error
    except (SafetensorError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: copy or download it again") from error
    return state.get("state_dict", state)


def family_of(path: Path, state: dict[str, Tensor]) -> Family:
    """Which family a checkpoint is of. Raises ValueError, naming what the file is, for any other."""
    wanted = "expected a Stable Diffusion 1 or SDXL checkpoint (U-Net, text encoder and autoencoder in one file)"
    key = next((k for k in TEXT_WIDTH_KEYS if k in state), None)
    if INPUT_KEY not in state or key is None:
        raise ValueError(f"{path} has no U-Net of Stable Diffusion 1 or SDXL in it: {wanted}")
    width = state[key].shape[1]
    family = next((f for f in (SD1, SDXL) if f.width == width), None)
    if family is None:
        kind = {1024: "as Stable Diffusion 2 does", 1280: "as the SDXL refiner does"}.get(width, "")
        raise ValueError(f"{path} reads a text of width {width} {kind}, not 768 or 2048: {wanted}")
    if (channels := state[INPUT_KEY].shape[1]) != family.latent_channels:
        raise ValueError(f"{path} takes {channels} input channels (an inpainting or editing model), not {family.latent_channels}: {wanted}")
    return family


def filled(build: Callable[[], Any], state: Mapping[str, Tensor], path: Path) -> Any:
    """The module that ``build`` makes, with its weights from ``state``. Raises ValueError if any is missing or misshapen."""
    with init_empty_weights():
        module = build()
    want = module.state_dict()
    wrong = [key for key, weight in want.items() if key not in state or state[key].shape != weight.shape]
    if wrong:
        kind = type(module).__name__
        raise ValueError(f"{path} is incomplete: it lacks {len(wrong)} of {len(want)} weights of the {kind}, first {wrong[0]}")
    module.load_state_dict({key: state[key] for key in want}, assign=True)
    return module


def new_text_encoder(encoder: Encoder, config: Mapping[str, Any]) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A text encoder; one whose pooled state the model reads gives it through a projection."""
    return (CLIPTextModelWithProjection if encoder.pooled else CLIPTextModel)(CLIPTextConfig(**config))


def text_model(encoder: Encoder, config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> Any:
    """A text encoder; its names begin with ``text_model.`` in files and in older releases of transformers, not in newer ones."""
    bare = {key.removeprefix("text_model."): weight for key, weight in state.items()}
    both = bare | {f"text_model.{key}": weight for key, weight in bare.items()}
    return filled(lambda: new_text_encoder(encoder, config), both, path)
