"""Random checkpoints of Stable Diffusion 1 and SDXL in the original single-file layout, made on the spot."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from ...engines.checkpoint import new_text_encoder
from ...models.family import Family
from ...models.sd import CLIP_G, CLIP_L, SD1, SDXL

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET = {
    r"add_embedding\.linear_(\d)": lambda m: f"label_emb.0.{2 * int(m[1]) - 2}",
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


OPEN_CLIP = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
}
CLIP_PREFIX = {SD1: "cond_stage_model.transformer.", SDXL: "conditioner.embedders.0.transformer."}
Parts = tuple[Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]], Mapping[str, Tensor]]


def original_names(parts: Parts, family: Family = SD1) -> Iterator[tuple[str, Tensor]]:
    """The tensors of diffusers state dicts under the names, and in the shapes, of the original layout."""
    unet, texts, vae = parts
    for key, weight in unet.items():
        for pattern, name in UNET.items():
            key = re.sub(f"^{pattern}(?=\\.)", name, key)
        if family is SDXL:  # its upper blocks have attention, so the upsampler comes third
            key = key.replace("output_blocks.2.1.conv", "output_blocks.2.2.conv")
        if "in_layers" not in key and re.match(r"(input_blocks|output_blocks)\.\d+\.0\.|middle_block\.[02]\.", key):
            for ours, theirs in RESNET.items():
                key = key.replace(f".{ours}.", f".{theirs}.")
        yield f"model.diffusion_model.{key}", weight
    for key, weight in texts[CLIP_L.name].items():
        yield f"{CLIP_PREFIX[family]}text_model.{key.removeprefix('text_model.')}", weight
    if family is SDXL:
        yield from open_clip_names(texts[CLIP_G.name])
    for key, weight in vae.items():
        attention = ".attentions." in key and key.endswith("weight") and weight.ndim == 2
        for pattern, name in VAE.items():
            key = re.sub(rf"\b{pattern}(?=\.)", name, key)
        yield f"first_stage_model.{key}", weight[:, :, None, None] if attention else weight


def open_clip_names(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """SDXL's second encoder in the layout of OpenCLIP: queries, keys and values in one matrix, the projection transposed."""
    prefix = "conditioner.embedders.1.model."
    for key, weight in state.items():
        key = key.removeprefix("text_model.")
        if key == "text_projection.weight":
            yield f"{prefix}text_projection", weight.T.contiguous()
            continue
        if match := re.search(r"self_attn\.([qkv])_proj\.(weight|bias)", key):
            if match[1] == "q":
                parts = [state[next(k for k in state if k.endswith(key.replace("q_proj", f"{p}_proj")))] for p in "qkv"]
                key = key[: match.start()] + f"attn.in_proj_{match[2]}"
                yield prefix + key.replace("encoder.layers", "transformer.resblocks"), torch.cat(parts)
            continue
        for ours, theirs in OPEN_CLIP.items():
            key = key.replace(ours, theirs)
        yield prefix + key, weight


def empty(family: Family = SD1) -> Parts:
    """State dicts of a full-size model without storage (device meta), in diffusers' names."""
    with init_empty_weights():
        own = family.diffusers
        texts = {e.name: dict(new_text_encoder(e, own.texts[e.name]).state_dict()) for e in family.encoders}
        return dict(UNet2DConditionModel(**own.model).state_dict()), texts, dict(AutoencoderKL(**own.vae).state_dict())


def write_checkpoint(path: Path, family: Family = SD1, seed: int = 0, dtype: torch.dtype = torch.float16) -> Path:
    """A full-size checkpoint (SD1.5: 2.1 GB in fp16, SDXL: 6.9 GB) of random weights that keep activations finite."""
    generator = torch.Generator().manual_seed(seed)

    def fill(key: str, shape: torch.Size) -> Tensor:
        if len(shape) == 1:
            return torch.full(shape, float(key.endswith("weight")), dtype=dtype)
        spread = 0.02 if "embedding" in key else shape[1:].numel() ** -0.5
        return torch.randn(shape, generator=generator).mul_(spread).to(dtype)

    unet, texts, vae = empty(family)
    filled = [{k: fill(k, w.shape) for k, w in part.items()} for part in (unet, *texts.values(), vae)]
    parts = filled[0], dict(zip(texts, filled[1:-1], strict=True)), filled[-1]
    save_file({k: w.contiguous() for k, w in original_names(parts, family)}, path)
    return path
