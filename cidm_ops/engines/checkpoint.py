"""A Stable Diffusion 1 or SDXL checkpoint in one file of the original layout, as diffusers' modules, without a download.

The shapes are known (``models/sd.py``); diffusers itself would fetch them. The names are translated by diffusers.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ..models.checkpoint import family_of_checkpoint, schedule_of_checkpoint
from ..models.encoder import Encoder
from ..models.family import Family
from ..tensor_file import read_tensors

Modules = tuple[Any, dict[str, Any], Any]  # U-Net, text encoders by name, autoencoder

OPEN_CLIP_KEY = "conditioner.embedders.1.model."


def read_checkpoint(path: Path) -> tuple[Modules, dict[str, Any]]:
    """U-Net, text encoders and autoencoder of a single-file checkpoint, in the file's own floating-point type, and its noise schedule.

    Raises ValueError naming the file if it is damaged, holds more than tensors, is no complete checkpoint, of another architecture, or
    predicts something else than epsilon or v.
    """
    try:
        state, metadata = read_state(path)
        schedule = schedule_of_checkpoint(state, metadata, family_of_checkpoint(state))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return from_original(state, path), schedule


def from_original(state: dict[str, Tensor], path: Path) -> Modules:
    """The same from the tensors of such a file; ``path`` is only named in errors."""
    try:
        family = family_of_checkpoint(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
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


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors or .ckpt file and its metadata; nothing but tensors is ever loaded."""
    content, metadata = read_tensors(path)
    content = content.get("state_dict", content)
    if not isinstance(content, Mapping):
        raise ValueError(f"its state_dict is a {type(content).__name__}: expected tensors by name")
    return {key: tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}, metadata


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
