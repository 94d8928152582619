"""A Stable Diffusion 1 checkpoint in one file of the original (CompVis) layout, as diffusers' modules, without a download.

The shapes of SD1.x are known, so they stand here; diffusers itself would fetch them. The names are translated by diffusers.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

# what is not named is the default of UNet2DConditionModel, AutoencoderKL and CLIPTextConfig
UNET_CONFIG: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "layers_per_block": 2}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
VAE_CONFIG: dict[str, Any] = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}

UNET_KEY = "model.diffusion_model."
TEXT_WIDTH_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
INPUT_KEY = "model.diffusion_model.input_blocks.0.0.weight"


def read_checkpoint(path: Path) -> tuple[UNet2DConditionModel, CLIPTextModel, AutoencoderKL]:
    """U-Net, text encoder and autoencoder of a single-file SD1.x checkpoint, in the file's own floating-point type.

    Raises ValueError if the file is damaged, holds more than tensors, is no complete checkpoint, or of another architecture.
    """
    return from_original(read_state(path), path)


def from_original(state: dict[str, Tensor], path: Path) -> tuple[UNet2DConditionModel, CLIPTextModel, AutoencoderKL]:
    """The same from the tensors of such a file; ``path`` is only named in errors."""
    check_architecture(path, state)
    unet = filled(lambda: UNet2DConditionModel(**UNET_CONFIG), convert_ldm_unet_checkpoint(state, UNET_CONFIG), path)
    text = text_model(TEXT_CONFIG, convert_ldm_clip_checkpoint(state), path)
    vae = filled(lambda: AutoencoderKL(**VAE_CONFIG), convert_ldm_vae_checkpoint(state, VAE_CONFIG), path)
    return unet, text, vae


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .ckpt file; of the latter nothing but tensors is ever loaded."""
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is damaged or holds Python objects, which are not loaded: convert it to .safetensors") from error
    except (SafetensorError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: copy or download it again") from error
    return state.get("state_dict", state)


def check_architecture(path: Path, state: dict[str, Tensor]) -> None:
    """Raises ValueError, naming what the file is, unless it has the U-Net of SD1.x."""
    wanted = "expected a Stable Diffusion 1 checkpoint (U-Net, text encoder and autoencoder in one file)"
    if any(key.startswith("conditioner.") for key in state):
        raise ValueError(f"{path} is an SDXL checkpoint: {wanted}")
    if INPUT_KEY not in state or TEXT_WIDTH_KEY not in state:
        raise ValueError(f"{path} has no U-Net of Stable Diffusion 1 in it: {wanted}")
    if (width := state[TEXT_WIDTH_KEY].shape[1]) != 768:
        raise ValueError(f"{path} reads a text of width {width} as Stable Diffusion 2 does, not 768: {wanted}")
    if (channels := state[INPUT_KEY].shape[1]) != 4:
        raise ValueError(f"{path} takes {channels} input channels (an inpainting or editing model), not 4: {wanted}")


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


def text_model(config: dict[str, Any], state: Mapping[str, Tensor], path: Path) -> CLIPTextModel:
    """A CLIPTextModel; its names begin with ``text_model.`` in files and in older releases of transformers, not in newer ones."""
    bare = {key.removeprefix("text_model."): weight for key, weight in state.items()}
    both = bare | {f"text_model.{key}": weight for key, weight in bare.items()}
    return filled(lambda: CLIPTextModel(CLIPTextConfig(**config)), both, path)
