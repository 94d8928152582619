"""Doodle as the host's own MODEL, CLIP, VAE and CLIP_VISION: its own classes in its own layout, at Doodle's size."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import torch
from torch import Tensor

from ..cidm_ops.doodle import files
from ..cidm_ops.models.sd import DOODLE

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": DOODLE.latent_channels,
    "out_channels": DOODLE.latent_channels,
    "model_channels": 128,
    "channel_mult": [1, 1, 1],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "context_dim": DOODLE.width,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}
# The stock latent format of SD 1 scales by 0.18215 around the autoencoder; TAESD's own scale undoes it.
LATENT_SCALE = 0.18215
# 0.3.64 has one kind of patcher, later hosts choose one for the machine.
Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


class DoodleLatent(comfy.latent_formats.SD15):
    """Stable Diffusion 1's, with Doodle's channels."""

    latent_channels = DOODLE.latent_channels

    def __init__(self) -> None:
        super().__init__(scale_factor=LATENT_SCALE)
        if self.latent_channels != super().latent_channels:  # what the host draws and undoes of the latents of others
            self.latent_rgb_factors, self.taesd_decoder_name = None, None


class Doodle(comfy.supported_models.SD15):
    """Stable Diffusion 1 at another size: matched by hand, so nothing for the host to detect."""

    unet_config: dict[str, Any] = {}
    latent_format = DoodleLatent

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION

    def inpaint_model(self) -> bool:
        """The host takes a U-Net of more than four input channels for one; Doodle's has latents of more."""
        return False


class DoodleTokenizer(comfy.sd1_clip.SDTokenizer):
    """CLIP's, for rows of embeddings as wide as the text encoder's."""

    config = files.TEXT_CONFIG

    def __init__(self, embedding_directory: str | None = None, tokenizer_data: dict[str, Any] | None = None):
        size = self.config["hidden_size"]
        super().__init__(embedding_directory=embedding_directory, embedding_size=size, tokenizer_data=tokenizer_data or {})


class ReaderTokenizer(DoodleTokenizer):
    """The same for the narrower rows of the reader."""

    config = files.READER_TEXT


class DoodleClip:
    """A kind of CLIP, with what the host wants to know of it."""

    params: dict[str, Any] = {}
    clip = comfy.sd1_clip.SD1ClipModel
    tokenizer = comfy.sd1_clip.SD1Tokenizer


def model(disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The U-Net in fp32. ``disable_dynamic`` is how the host asks for a copy with plain weights, to train it."""
    names = comfy.utils.unet_to_diffusers(UNET)
    config = Doodle(UNET)
    config.set_inference_dtype(torch.float32, None)
    offload = comfy.model_management.unet_offload_device()
    base = config.get_model({}, "", device=offload)
    base.load_model_weights({names[key]: weight.float() for key, weight in files.unet_state().items()}, "")
    base.eval().requires_grad_(False)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else Patcher
    patcher = kind(base, load_device=comfy.model_management.get_torch_device(), offload_device=offload)
    patcher.cached_patcher_init = (model, ())
    return patcher


def clip() -> comfy.sd.CLIP:
    """The text encoder."""
    return text_encoder(files.text_state(), files.TEXT_CONFIG, DoodleTokenizer)


def captions() -> comfy.sd.CLIP:
    """The reader's caption side, with its projection."""
    return text_encoder(files.caption_state(), files.READER_TEXT, ReaderTokenizer)


def text_encoder(
    state: Mapping[str, Tensor], config: Mapping[str, Any], tokenizer: Callable[..., Any], encoder: type | None = None
) -> comfy.sd.CLIP:
    """A CLIP of the host in fp32 from the weights of a text model in CLIP's names, its configuration, and what makes its tokenizer;
    ``encoder`` stands in for the host's class.
    """
    name, own = files.ENCODER.host, "text_projection.weight"
    options: dict[str, Any] = {"dtype": torch.float32, f"{name}_model_config": dict(config)}
    if encoder:
        options[f"{name}_class"] = encoder
    found = comfy.sd.CLIP(DoodleClip, tokenizer_data={f"{name}_tokenizer_class": tokenizer}, model_options=options)
    projection = state.get(own, torch.eye(config["hidden_size"]))  # the host leaves one that is not there uninitialised
    named = {f"text_model.{key.removeprefix('text_model.')}": weight.float() for key, weight in state.items() if key != own}
    found.load_sd(named | {own: projection.float()})
    return found


def vae() -> comfy.sd.VAE:
    """The autoencoder. The host's decoder clamps in a layer of its own, so its numbers are one higher."""
    state: dict[str, Tensor] = {"vae_scale": torch.tensor(LATENT_SCALE), "vae_shift": torch.tensor(0.0)}
    for key, weight in files.vae_state().items():
        side, _, number, rest = key.split(".", 3)
        state[f"taesd_{side}.{int(number) + (side == 'decoder')}.{rest}"] = weight.float()
    return comfy.sd.VAE(sd=state, dtype=torch.float32)


def vision() -> comfy.clip_vision.ClipVisionModel:
    """The image tower, which tells individuals apart."""
    return image_tower(files.vision_state())


def reader() -> comfy.clip_vision.ClipVisionModel:
    """The reader's image side, in the space of ``captions``."""
    return image_tower(files.reader_state())


def image_tower(state: Mapping[str, Tensor]) -> comfy.clip_vision.ClipVisionModel:
    """An image tower of the host from weights; 0.3.64 reads its description from a file only."""
    description = {
        "model_type": "clip_vision_model",
        "num_channels": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        **files.vision_config(state),
        "projection_dim": len(state["visual_projection.weight"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vision.json"
        path.write_text(json.dumps(description), encoding="utf-8")
        tower = comfy.clip_vision.ClipVisionModel(str(path))
    tower.load_sd({key: weight.float() for key, weight in state.items()})
    return tower
