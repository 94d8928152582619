"""Random Stable Diffusion 1 checkpoints in the original single-file layout, made on the spot."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from cidm_ops.engines.checkpoint import TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET = {
    r"time_embedding\.linear_(\d)": lambda m: f"time_embed.{2 * int(m[1]) - 2}",
    r"conv_in": lambda m: "input_blocks.0.0",
    r"conv_norm_out": lambda m: "out.0",
    r"conv_out": lambda m: "out.2",
    r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)": lambda m: f"input_blocks.{3 * int(m[1]) + int(m[3]) + 1}.{int(m[2] == 'attentions')}",
    r"down_blocks\.(\d)\.downsamplers\.0\.conv": lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op",
    r"mid_block\.resnets\.(\d)": lambda m: f"middle_block.{2 * int(m[1])}",
    r"mid_block\.attentions\.0": lambda m: "middle_block.1",
    r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)": lambda m: f"output_blocks.{3 * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}",
    r"up_blocks\.(\d)\.upsamplers\.0\.conv": lambda m: f"output_blocks.{3 * int(m[1]) + 2}.{1 if m[1] == '0' else 2}.conv",
}
VAE = {
    r"down_blocks\.(\d)\.resnets\.(\d)": lambda m: f"down.{m[1]}.block.{m[2]}",
    r"down_blocks\.(\d)\.downsamplers\.0": lambda m: f"down.{m[1]}.downsample",
    r"up_blocks\.(\d)\.resnets\.(\d)": lambda m: f"up.{3 - int(m[1])}.block.{m[2]}",
    r"up_blocks\.(\d)\.upsamplers\.0": lambda m: f"up.{3 - int(m[1])}.upsample",
    r"mid_block\.resnets\.(\d)": lambda m: f"mid.block_{int(m[1]) + 1}",
    r"mid_block\.attentions\.0": lambda m: "mid.attn_1",
    r"conv_norm_out": lambda m: "norm_out",
    r"conv_shortcut": lambda m: "nin_shortcut",
    r"group_norm": lambda m: "norm",
    r"to_([qkv])": lambda m: m[1],
    r"to_out\.0": lambda m: "proj_out",
}


def original_names(unet: Mapping[str, Tensor], text: Mapping[str, Tensor], vae: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of diffusers state dicts under the names, and in the shapes, of the original layout."""
    for key, weight in unet.items():
        for pattern, name in UNET.items():
            key = re.sub(f"^{pattern}(?=\\.)", name, key)
        if "in_layers" not in key and re.match(r"(input_blocks|output_blocks)\.\d+\.0\.|middle_block\.[02]\.", key):
            for ours, theirs in RESNET.items():
                key = key.replace(f".{ours}.", f".{theirs}.")
        yield f"model.diffusion_model.{key}", weight
    for key, weight in text.items():
        yield f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}", weight
    for key, weight in vae.items():
        attention = ".attentions." in key and key.endswith("weight") and weight.ndim == 2
        for pattern, name in VAE.items():
            key = re.sub(rf"\b{pattern}(?=\.)", name, key)
        yield f"first_stage_model.{key}", weight[:, :, None, None] if attention else weight


def empty_sd1() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """State dicts of a full-size SD1.5 without storage (device meta), in diffusers' names."""
    with init_empty_weights():
        modules = UNet2DConditionModel(**UNET_CONFIG), CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG)), AutoencoderKL(**VAE_CONFIG)
    return tuple(dict(module.state_dict()) for module in modules)


def write_sd1(path: Path, seed: int = 0, dtype: torch.dtype = torch.float16) -> Path:
    """A full-size SD1.5 checkpoint (2.1 GB in fp16) of random weights that keep activations finite."""
    generator = torch.Generator().manual_seed(seed)

    def fill(key: str, shape: torch.Size) -> Tensor:
        if len(shape) == 1:
            return torch.full(shape, float(key.endswith("weight")), dtype=dtype)
        spread = 0.02 if "embedding" in key else shape[1:].numel() ** -0.5
        return torch.randn(shape, generator=generator).mul_(spread).to(dtype)

    save_file({key: fill(key, weight.shape) for key, weight in original_names(*empty_sd1())}, path)
    return path
