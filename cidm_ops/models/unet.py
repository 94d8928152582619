"""The U-Net of Stable Diffusion 1 and SDXL: its blocks, and the names of its layers in the LoRA files of others.

Names in such files have ``_`` for every dot, so they are read by the few words that the layers are named with. Both layouts
are known, the original one (``input_blocks``) and that of diffusers (``down_blocks``), which is ours.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from .blocks import Blocks, Linear, Sublayer

ORDER = ("down_blocks", "mid_block", "up_blocks")


def attention(name: str, reads: str) -> Sublayer:
    """An attention whose keys and values read the tokens of ``reads``, "image" or "text"."""
    parts = [Linear(f"{name}.to_q", "query")]
    for letter, role in (("k", "key"), ("v", "value")):
        parts.append(Linear(f"{name}.to_{letter}", role, reads))  # type: ignore[arg-type]
    return Sublayer(name, "cross" if reads == "text" else "self", (*parts, Linear(f"{name}.to_out.0", "out")))


FEED_FORWARD = Sublayer("ff", "feed_forward", (Linear("ff.net.0.proj", "inner"), Linear("ff.net.2", "outer")))
TRANSFORMERS = Blocks(r".+\.transformer_blocks\.\d+", (attention("attn1", "image"), attention("attn2", "text"), FEED_FORWARD))

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
INSIDE = {part.name.replace(".", "_"): part.name for sub in TRANSFORMERS.sublayers for part in sub.linears}
INSIDE |= {name.removesuffix("_0"): part for name, part in INSIDE.items() if name.endswith("to_out_0")}

BLOCK = re.compile(r"(?:(down|up)_blocks_(\d+)|mid_block)_(attentions|resnets|downsamplers|upsamplers)_(\d+)_(\w+)")
ORIGINAL = re.compile(r"(?:(input|output)_blocks_(\d+)|middle_block)_(\d+)_(\w+)")
INNER = re.compile(r"transformer_blocks_(\d+)_(\w+)")

KERNELS = ((r"(^|\.)(conv[12]?|conv_in|conv_out)$", (3, 3)), (r"(^|\.)conv_shortcut$", (1, 1)))
PROJECTIONS = ((r"(^|\.)proj_(in|out)$", (1, 1)),)  # around the transformers, where these are convolutions


def unet_layer(flat: str, resnets: int) -> str | None:
    """Our name of a layer, such as ``down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q``, from one with ``_`` for every dot.

    ``resnets`` in each block of the down path decide where a layer of the original layout lies. ``None`` for a layer that no such U-Net
    has, or that no low-rank delta can change, such as a norm.
    """
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
    return f"{here}.transformer_blocks.{inner[1]}.{INSIDE[inner[2]]}" if inner and inner[2] in INSIDE else None


def layers_of(resnets: int) -> partial[str | None]:
    """Return what reads the names of a U-Net with so many resnets in each block of the down path."""
    return partial(unet_layer, resnets=resnets)


def patch_place(module: str) -> tuple[str, int, int]:
    """``input_blocks.4.1.transformer_blocks.0...`` is what the host's attention patches see as ``("input", 4)`` and index 0."""
    kind, number = module.split(".")[:2]
    index = int(module.partition("transformer_blocks.")[2].partition(".")[0])
    return ("middle", 0, index) if kind == "middle_block" else (kind.removesuffix("_blocks"), int(number), index)


def _of_diffusers(side: str | None, number: str | None, place: str, part: str, resnets: int) -> str:
    """``output_blocks_2_1_conv`` as ``up_blocks_0_upsamplers_0_conv``: every block has its resnets, then one that resamples."""
    kind = {"op": "downsamplers", "conv": "upsamplers"}.get(part, "resnets" if part in RESNET else "attentions")
    if side is None or number is None:
        return f"mid_block_{kind}_{int(place) // 2}_{part}"
    block, index = divmod(int(number) - (side == "input"), resnets + 1)
    if kind in ("downsamplers", "upsamplers"):
        index, part = 0, "conv"
    return f"{'down' if side == 'input' else 'up'}_blocks_{block}_{kind}_{index}_{part}"


# What diffusers takes for what a configuration does not name.
DEFAULTS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
}


def unet_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The weights ``(out, in)`` of all linear layers and convolutions of a U-Net by canonical name, from diffusers' configuration of it.

    Of a convolution, ``in`` runs over channels, rows and columns.
    """
    config = DEFAULTS | dict(config)
    channels, resnets, text = config["block_out_channels"], config["layers_per_block"], config["cross_attention_dim"]
    depth = config["transformer_layers_per_block"]
    depths = (depth,) * len(channels) if isinstance(depth, int) else depth
    first, time, last = channels[0], 4 * channels[0], len(channels) - 1
    shapes = {
        "conv_in": (first, 9 * config["in_channels"]),
        "conv_out": (config["out_channels"], 9 * first),
        "time_embedding.linear_1": (time, first),
        "time_embedding.linear_2": (time, time),
    }
    if config.get("addition_embed_type") == "text_time":
        shapes["add_embedding.linear_1"] = (time, config["projection_class_embeddings_input_dim"])
        shapes["add_embedding.linear_2"] = (time, time)
    for i, width in enumerate(channels):
        here = f"down_blocks.{i}"
        for j in range(resnets):
            shapes |= _resnet(f"{here}.resnets.{j}", channels[max(i - 1, 0)] if j == 0 else width, width, time)
            if "CrossAttn" in config["down_block_types"][i]:
                shapes |= _transformer(f"{here}.attentions.{j}", width, text, depths[i])
        if i < last:
            shapes[f"{here}.downsamplers.0.conv"] = (width, 9 * width)
    for j in range(2):
        shapes |= _resnet(f"mid_block.resnets.{j}", channels[-1], channels[-1], time)
    shapes |= _transformer("mid_block.attentions.0", channels[-1], text, depths[-1])
    widths = channels[::-1]
    for i, width in enumerate(widths):
        here, before, skipped = f"up_blocks.{i}", widths[max(i - 1, 0)], widths[min(i + 1, last)]
        for j in range(resnets + 1):
            read = (before if j == 0 else width) + (skipped if j == resnets else width)  # with what the down path left for it
            shapes |= _resnet(f"{here}.resnets.{j}", read, width, time)
            if "CrossAttn" in config["up_block_types"][i]:
                shapes |= _transformer(f"{here}.attentions.{j}", width, text, depths[last - i])
        if i < last:
            shapes[f"{here}.upsamplers.0.conv"] = (width, 9 * width)
    return shapes


def _resnet(here: str, read: int, width: int, time: int) -> dict[str, tuple[int, int]]:
    shapes = {f"{here}.conv1": (width, 9 * read), f"{here}.conv2": (width, 9 * width), f"{here}.time_emb_proj": (width, time)}
    return shapes | ({f"{here}.conv_shortcut": (width, read)} if read != width else {})


def _transformer(here: str, width: int, text: int, depth: int) -> dict[str, tuple[int, int]]:
    shapes = {f"{here}.proj_in": (width, width), f"{here}.proj_out": (width, width)}
    wide = {"ff.net.0.proj": (8 * width, width), "ff.net.2": (width, 4 * width)}  # GEGLU (Shazeer 2020): twice four times the width
    for part in (part for sub in TRANSFORMERS.sublayers for part in sub.linears):
        shape = wide.get(part.name, (width, text if part.reads == "text" else width))
        shapes |= {f"{here}.transformer_blocks.{i}.{part.name}": shape for i in range(depth)}
    return shapes
