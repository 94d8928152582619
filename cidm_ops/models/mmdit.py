"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): MMDiT, a transformer of rectified flow in two streams.

Image and text tokens have weights of their own in every block and attend to each other there; in the first blocks of 3.5 Medium the image
tokens also attend to each other alone. Tokens of texts have no places. A text is what two CLIPs made of it, side by side, and behind that
what T5 did. Our names are those of diffusers, in which queries, keys and values are apart.
"""

from collections.abc import Mapping
from dataclasses import replace

from . import clip, sd
from .blocks import Blocks, Linear, Sublayer
from .diffusers import Diffusers, TextReader
from .family import Family, Objective
from .flux import DOUBLE_BLOCKS, TWO_STREAMS
from .host import Host
from .lora_files import LoraFiles
from .module import Module, reader_of, thirds
from .registry import register

ROOTS = ("lora_unet", "lora_transformer", "lycoris", "transformer(?!_blocks)", "(?:model_)?diffusion_model", "unet")
BLOCK, IMAGE, TEXT = "transformer_blocks.{}", "joint_blocks.{}.x_block", "joint_blocks.{}.context_block"
TEXT_WIDTH, POOLED, PATCH, CHANNELS = 4096, 2048, 2, 16

MODULES = (
    Module(f"{IMAGE}.attn.qkv", [f"{BLOCK}.attn.to_{p}" for p in "qkv"], thirds),
    Module(f"{TEXT}.attn.qkv", [f"{BLOCK}.attn.add_{p}_proj" for p in "qkv"], thirds),
    Module(f"{IMAGE}.attn.proj", [f"{BLOCK}.attn.to_out.0"], others=[f"{BLOCK}.attn.to_out"]),
    Module(f"{TEXT}.attn.proj", [f"{BLOCK}.attn.to_add_out"]),
    Module(f"{IMAGE}.attn2.qkv", [f"{BLOCK}.attn2.to_{p}" for p in "qkv"], thirds),
    Module(f"{IMAGE}.attn2.proj", [f"{BLOCK}.attn2.to_out.0"], others=[f"{BLOCK}.attn2.to_out"]),
    Module(f"{IMAGE}.mlp.fc1", [f"{BLOCK}.ff.net.0.proj"]),
    Module(f"{IMAGE}.mlp.fc2", [f"{BLOCK}.ff.net.2"]),
    Module(f"{TEXT}.mlp.fc1", [f"{BLOCK}.ff_context.net.0.proj"]),
    Module(f"{TEXT}.mlp.fc2", [f"{BLOCK}.ff_context.net.2"]),
    Module(f"{IMAGE}.adaLN_modulation.1", [f"{BLOCK}.norm1.linear"]),
    Module(f"{TEXT}.adaLN_modulation.1", [f"{BLOCK}.norm1_context.linear"]),
    Module("context_embedder", ["context_embedder"]),
    Module("t_embedder.mlp.0", ["time_text_embed.timestep_embedder.linear_1"]),
    Module("t_embedder.mlp.2", ["time_text_embed.timestep_embedder.linear_2"]),
    Module("y_embedder.mlp.0", ["time_text_embed.text_embedder.linear_1"]),
    Module("y_embedder.mlp.2", ["time_text_embed.text_embedder.linear_2"]),
    Module("final_layer.linear", ["proj_out"]),
)

# The attention of image tokens to each other alone, in the blocks that have it.
ALONE = Sublayer(
    "attn2",
    "self",
    (Linear("attn2.to_q", "query"), Linear("attn2.to_k", "key"), Linear("attn2.to_v", "value"), Linear("attn2.to_out.0", "out")),
)
BLOCKS = Blocks(DOUBLE_BLOCKS.pattern, (TWO_STREAMS, ALONE, *DOUBLE_BLOCKS.sublayers[1:]))

# The weights of a block as multiples of the width, out and in.
STREAMS = {
    **{f"attn.{name}": (1, 1) for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
    **{f"{ff}.net.0.proj": (4, 1) for ff in ("ff", "ff_context")},
    **{f"{ff}.net.2": (1, 4) for ff in ("ff", "ff_context")},
    **{norm: (6, 1) for norm in ("norm1.linear", "norm1_context.linear")},
}
TWICE = {f"attn2.{name}": (1, 1) for name in ("to_q", "to_k", "to_v", "to_out.0")} | {"norm1.linear": (9, 1)}
ENDS = ("attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2")  # what the last block has none of
LAST = {name: shape for name, shape in STREAMS.items() if name not in ENDS} | {"norm1_context.linear": (2, 1)}


def shapes_of(depth: int, width: int, twice: int) -> Mapping[str, tuple[int, int]]:
    """The weights ``(out, in)`` of its linear layers and of those of its CLIPs. ``twice`` blocks have an attention of the image alone."""
    found: dict[str, tuple[int, int]] = {}
    for i in range(depth):
        block = LAST if i == depth - 1 else STREAMS | TWICE if i < twice else STREAMS
        found |= {f"{BLOCK.format(i)}.{name}": (rows * width, columns * width) for name, (rows, columns) in block.items()}
    found |= {"context_embedder": (width, TEXT_WIDTH), "proj_out": (PATCH * PATCH * CHANNELS, width)}
    for part, read in (("timestep", 256), ("text", POOLED)):
        found[f"time_text_embed.{part}_embedder.linear_1"] = (width, read)
        found[f"time_text_embed.{part}_embedder.linear_2"] = (width, width)
    texts = ((CLIP_L, clip.SMALL), (CLIP_G, clip.BIG))
    return found | {f"{e.name}.{layer}": shape for e, size in texts for layer, shape in clip.clip_shapes(size).items()}


CLIP_L = replace(sd.CLIP_L, skip=1, pooled=True, kohya="text_encoder.text_model.")
CLIP_G = replace(sd.CLIP_G, kohya="text_encoder_2.text_model.")

MEDIUM = register(
    Family(
        name="sd3",
        title="Stable Diffusion 3.5",
        architecture="sd3-24x1536",  # 3 Medium too, which has no second attention
        encoders=(CLIP_L, CLIP_G),
        blocks=(BLOCKS,),
        modules=MODULES,
        latent_channels=CHANNELS,
        factor=8,
        patch=PATCH,
        size=1024,
        order=("transformer_blocks",),
        unread=r"attn\.add_q_proj",
        turned=r"norm1_context\.linear",
        layerwise=False,
        abbreviations=("_transformer_blocks", ".attn"),
        host=Host(models=("SD3",), wrapped=False),
        diffusers=Diffusers(
            folder="transformer",
            facts={"_class_name": "SD3Transformer2DModel"},
            texts={"clip_l": clip.SMALL, "clip_g": clip.BIG},
            reader=TextReader(
                states="text_encoder_3",
                tokenizer="tokenizer_3",
                least=77,
                beside=(("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")),
            ),
        ),
        objective=Objective(shift=3.0, cfg=4.5),
        files=LoraFiles(
            kohya="transformer.",
            dotted=True,
            roots=ROOTS,
            read_layer=reader_of(MODULES),
            least=0.9,
            said=r"(?i)(stable[-_ ]?diffusion|sd)[-_ ]?3.*medium",
            kin="flux1",  # the layers of its blocks are called as those of Flux.1
            modelspec="stable-diffusion-3.5-medium/lora",
        ),
        weigh=lambda family: shapes_of(24, 1536, 13),
    )
)

LARGE = register(
    replace(
        MEDIUM,
        title="Stable Diffusion 3.5 Large",
        architecture="sd3-38x2432",
        files=replace(
            MEDIUM.files,
            said=r"(?i)(stable[-_ ]?diffusion|sd)[-_ ]?3.*large",
            kin="sd3",
            modelspec="stable-diffusion-3.5-large/lora",
        ),
        weigh=lambda family: shapes_of(38, 2432, 0),
    )
)
