"""Names of layers in the LoRA files of others, read into ours: diffusers' own, with dots.

Kohya's names have ``_`` for every dot, so dots say nothing: all names are read with underscores, by the few words that
layers of Stable Diffusion 1 and SDXL are named with. Both layouts of a U-Net are known, the original one (``input_blocks``)
and that of diffusers (``down_blocks``), and no count of blocks is.
"""

import re

from ..adapters import PARTS

# what a key ends with, after the name of its layer
PART = re.compile(
    r"(?P<module>.+?)(?:"
    r"[._]lora(?:_linear_layer)?[._](?P<side>up|down|mid|A|B)(?:(?:\.\w+)?\.weight)?|"
    r"(?:[._]lora[\w.]*)?\.(?P<other>alpha|diff|dora_scale|hada_\w+|lokr_\w+)|"
    r"\.(?P<dora>lora_magnitude_vector)(?:\.\w+)*)"
)
SIDES = {"A": "down", "B": "up"}

NOISE = re.compile(r"base_model\.model\.|\.?processor(?=\.)")  # of peft, and of diffusers' attention processors
ROOT = re.compile(
    r"(?P<unet>lora_unet|lycoris|unet|(?:model_)?diffusion_model)_|"
    r"(?P<clip_g>lora_te2|text_encoder_2|text_encoders_clip_g_transformer)_|"
    r"(?P<clip_l>lora_te1?|text_encoder|text_encoders_clip_l_transformer)_"
)

TOP = {
    "conv_in": "conv_in",
    "input_blocks_0_0": "conv_in",
    "conv_out": "conv_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
} | {f"{part}_embedding_linear_{i}": f"{part}_embedding.linear_{i}" for part in ("time", "add") for i in (1, 2)}
RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
} | {name: name for name in ("conv1", "conv2", "time_emb_proj", "conv_shortcut")}
TRANSFORMER = {part.replace(".", "_"): part for part in PARTS} | {f"attn{i}_to_out": f"attn{i}.to_out.0" for i in (1, 2)}

BLOCK = re.compile(r"(?:(down|up)_blocks_(\d+)|mid_block)_(attentions|resnets|downsamplers|upsamplers)_(\d+)_(\w+)")
ORIGINAL = re.compile(r"(?:(input|output)_blocks_(\d+)|middle_block)_(\d+)_(\w+)")
INNER = re.compile(r"transformer_blocks_(\d+)_(\w+)")
TEXT = re.compile(r"(?:text_model_)?encoder_layers_(\d+)_(?:self_attn_(?:to_)?(q|k|v|out)(?:_proj)?|mlp_(fc[12]))")


def split_key(key: str) -> tuple[str, str] | None:
    """The layer's name as it is written and the part of it: ``up``, ``down``, ``mid``, ``alpha``, ``diff``, ``dora_scale``,
    ``hada_…``, ``lokr_…``. None for a key of no known kind.
    """
    match = PART.fullmatch(key)
    if not match:
        return None
    side = match["side"]
    return match["module"], SIDES.get(side, side) if side else match["other"] or "dora_scale"


def canonical(module: str, resnets: int = 2) -> str | None:
    """Our name of a layer: ``down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q``, ``clip_l.encoder.layers.0.mlp.fc1``.

    ``resnets`` in each block of the down path decide where a layer of the original layout lies. None for a layer that no
    Stable Diffusion 1 or SDXL has, or that no low-rank delta can change, such as a norm.
    """
    flat = NOISE.sub("", module).replace(".", "_")
    root = ROOT.match(flat)
    rest = flat[root.end() :] if root else flat
    if root and not root["unet"]:
        return _text_layer(rest, "clip_g" if root["clip_g"] else "clip_l")
    return _unet_layer(rest, resnets) or (None if root else _text_layer(rest, "clip_l"))


def kernel_of(layer: str, family: str) -> tuple[int, ...]:
    """The kernel of a convolution by its name, () of a linear layer. What stands around transformers is linear in SDXL only."""
    last = layer.rpartition(".")[2]
    if last in ("conv1", "conv2", "conv", "conv_in", "conv_out"):
        return 3, 3
    return (1, 1) if last == "conv_shortcut" or (last in ("proj_in", "proj_out") and family != "sdxl") else ()


def _text_layer(flat: str, encoder: str) -> str | None:
    match = TEXT.fullmatch(flat)
    if not match:
        return None
    part = f"mlp.{match[3]}" if match[3] else f"self_attn.{match[2]}_proj"
    return f"{encoder}.encoder.layers.{match[1]}.{part}"


def _unet_layer(flat: str, resnets: int) -> str | None:
    if flat in TOP:
        return TOP[flat]
    if original := ORIGINAL.fullmatch(flat):
        flat = _of_diffusers(original[1], original[2], original[3], original[4], resnets)
    match = BLOCK.fullmatch(flat)
    if not match:
        return None
    side, block, kind, index, part = match.groups()
    here = f"{side}_blocks.{block}.{kind}.{index}" if side else f"mid_block.{kind}.{index}"
    if kind == "resnets":
        return f"{here}.{RESNET[part]}" if part in RESNET else None
    if kind != "attentions":
        return f"{here}.conv" if part == "conv" else None
    if part in ("proj_in", "proj_out"):
        return f"{here}.{part}"
    inner = INNER.fullmatch(part)
    return f"{here}.transformer_blocks.{inner[1]}.{TRANSFORMER[inner[2]]}" if inner and inner[2] in TRANSFORMER else None


def _of_diffusers(side: str | None, number: str | None, place: str, part: str, resnets: int) -> str:
    """``output_blocks_2_1_conv`` as ``up_blocks_0_upsamplers_0_conv``: every block has its resnets, then one that resamples."""
    kind = {"op": "downsamplers", "conv": "upsamplers"}.get(part, "resnets" if part in RESNET else "attentions")
    if side is None or number is None:
        return f"mid_block_{kind}_{int(place) // 2}_{part}"
    block, index = divmod(int(number) - (side == "input"), resnets + 1)
    if kind in ("downsamplers", "upsamplers"):
        index, part = 0, "conv"
    return f"{'down' if side == 'input' else 'up'}_blocks_{block}_{kind}_{index}_{part}"
