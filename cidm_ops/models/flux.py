"""Flux.1 (Black Forest Labs 2024) and Chroma, which was made of it without the modulation in its blocks.

A transformer of rectified flow: image and text tokens attend to each other, first in two streams with weights of their own, then in one.
Our names are those of diffusers, in which queries, keys and values are apart.
"""

from dataclasses import replace

from . import clip, sd
from .blocks import Blocks, Linear, Sublayer
from .diffusers import Diffusers, TextReader
from .family import Family, Objective
from .host import Host
from .lora_files import LoraFiles
from .module import Module, reader_of, thirds
from .registry import register

ROOTS = ("lora_unet", "lora_transformer", "lycoris", "transformer(?!_blocks)", "(?:model_)?diffusion_model", "unet")
DOUBLE, SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
HOST_DOUBLE, HOST_SINGLE = "double_blocks.{}", "single_blocks.{}"


def linear1(total: int, width: int) -> tuple[int, ...]:
    """Queries, keys and values, and the first layer of the feed-forward."""
    return width, width, width, total - 3 * width


STREAMS = (
    Module(f"{HOST_DOUBLE}.img_attn.qkv", [f"{DOUBLE}.attn.to_{p}" for p in "qkv"], thirds),
    Module(f"{HOST_DOUBLE}.txt_attn.qkv", [f"{DOUBLE}.attn.add_{p}_proj" for p in "qkv"], thirds),
    Module(f"{HOST_DOUBLE}.img_attn.proj", [f"{DOUBLE}.attn.to_out.0"], others=[f"{DOUBLE}.attn.to_out"]),
    Module(f"{HOST_DOUBLE}.txt_attn.proj", [f"{DOUBLE}.attn.to_add_out"]),
    Module(f"{HOST_DOUBLE}.img_mlp.0", [f"{DOUBLE}.ff.net.0.proj"], others=[f"{DOUBLE}.ff.linear_in"]),
    Module(f"{HOST_DOUBLE}.img_mlp.2", [f"{DOUBLE}.ff.net.2"], others=[f"{DOUBLE}.ff.linear_out"]),
    Module(f"{HOST_DOUBLE}.txt_mlp.0", [f"{DOUBLE}.ff_context.net.0.proj"], others=[f"{DOUBLE}.ff_context.linear_in"]),
    Module(f"{HOST_DOUBLE}.txt_mlp.2", [f"{DOUBLE}.ff_context.net.2"], others=[f"{DOUBLE}.ff_context.linear_out"]),
    Module(f"{HOST_SINGLE}.linear1", [*(f"{SINGLE}.attn.to_{p}" for p in "qkv"), f"{SINGLE}.proj_mlp"], linear1),
    Module(f"{HOST_SINGLE}.linear2", [f"{SINGLE}.proj_out"]),
)
AROUND = (
    Module("img_in", ["x_embedder"]),
    Module("txt_in", ["context_embedder"]),
    Module("final_layer.linear", ["proj_out"]),
)
MODULATION = (
    Module(f"{HOST_DOUBLE}.img_mod.lin", [f"{DOUBLE}.norm1.linear"]),
    Module(f"{HOST_DOUBLE}.txt_mod.lin", [f"{DOUBLE}.norm1_context.linear"]),
    Module(f"{HOST_SINGLE}.modulation.lin", [f"{SINGLE}.norm.linear"]),
    *(
        Module(f"{own}.{layer}_layer", [f"time_text_embed.{theirs}_embedder.linear_{i}"])
        for own, theirs in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance"))
        for i, layer in ((1, "in"), (2, "out"))
    ),
)

# The attention of a block in which image and text have weights of their own.
TWO_STREAMS = Sublayer(
    "attn",
    "joint",
    (
        Linear("attn.to_q", "query"),
        Linear("attn.to_k", "key"),
        Linear("attn.to_v", "value"),
        Linear("attn.to_out.0", "out"),
        Linear("attn.add_q_proj", "query", "text"),
        Linear("attn.add_k_proj", "key", "text"),
        Linear("attn.add_v_proj", "value", "text"),
        Linear("attn.to_add_out", "out", "text"),
    ),
)

DOUBLE_BLOCKS = Blocks(
    r"transformer_blocks\.\d+",
    (
        TWO_STREAMS,
        Sublayer("ff", "feed_forward", (Linear("ff.net.0.proj", "inner"), Linear("ff.net.2", "outer"))),
        Sublayer(
            "ff_context", "feed_forward", (Linear("ff_context.net.0.proj", "inner", "text"), Linear("ff_context.net.2", "outer", "text"))
        ),
    ),
)
SINGLE_BLOCKS = Blocks(
    r"single_transformer_blocks\.\d+",
    (
        Sublayer(
            "attn",
            "joint",
            (Linear("attn.to_q", "query", "both"), Linear("attn.to_k", "key", "both"), Linear("attn.to_v", "value", "both")),
        ),
        # The last layer reads what attention and feed-forward made, side by side.
        Sublayer("mlp", "feed_forward", (Linear("proj_mlp", "inner", "both"), Linear("proj_out", "outer", "both"))),
    ),
)

WIDTH, DEPTH, SINGLE_DEPTH, TEXT_WIDTH, PATCH, CHANNELS = 3072, 19, 38, 4096, 2, 16

DOUBLE_SHAPES = {
    **{f"attn.{name}": (1, 1) for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
    **{f"{ff}.net.0.proj": (4, 1) for ff in ("ff", "ff_context")},
    **{f"{ff}.net.2": (1, 4) for ff in ("ff", "ff_context")},
}
SINGLE_SHAPES = {**{f"attn.to_{p}": (1, 1) for p in "qkv"}, "proj_mlp": (4, 1), "proj_out": (1, 5)}
DOUBLE_MODULATION = {"norm1.linear": (6, 1), "norm1_context.linear": (6, 1)}
SINGLE_MODULATION = {"norm.linear": (3, 1)}


def block_shapes(double: dict[str, tuple[int, int]], single: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The weights ``(out, in)`` of all blocks, from those of one of each kind as multiples of the width."""
    kinds = ((DOUBLE, double, DEPTH), (SINGLE, single, SINGLE_DEPTH))
    return {
        f"{block.format(i)}.{name}": (rows * WIDTH, columns * WIDTH)
        for block, shapes, depth in kinds
        for i in range(depth)
        for name, (rows, columns) in shapes.items()
    }


def chroma_shapes(family: Family) -> dict[str, tuple[int, int]]:
    """The weights of Chroma's linear layers."""
    patch = PATCH * PATCH * CHANNELS
    around = {"x_embedder": (WIDTH, patch), "context_embedder": (WIDTH, TEXT_WIDTH), "proj_out": (patch, WIDTH)}
    return block_shapes(DOUBLE_SHAPES, SINGLE_SHAPES) | around


def flux_shapes(family: Family) -> dict[str, tuple[int, int]]:
    """The weights of the linear layers of Flux.1, and of its smaller text encoder."""
    shapes = chroma_shapes(family) | block_shapes(DOUBLE_MODULATION, SINGLE_MODULATION)
    for part, read in (("timestep", 256), ("guidance", 256), ("text", clip.SMALL["hidden_size"])):
        shapes[f"time_text_embed.{part}_embedder.linear_1"] = (WIDTH, read)
        shapes[f"time_text_embed.{part}_embedder.linear_2"] = (WIDTH, WIDTH)
    return shapes | {f"{CLIP_L.name}.{layer}": shape for layer, shape in clip.clip_shapes(clip.SMALL).items()}


# It reads the pooled state alone, the tokens are those of T5; our files have its layers as diffusers does.
CLIP_L = replace(sd.CLIP_L, pooled=True, kohya="text_encoder.text_model.")
FLUX_MODULES, CHROMA_MODULES = (*STREAMS, *MODULATION, *AROUND), (*STREAMS, *AROUND)

FLUX = register(
    Family(
        name="flux1",
        title="Flux.1",
        architecture=f"flux1-{DEPTH}+{SINGLE_DEPTH}x{WIDTH}",
        encoders=(CLIP_L,),
        blocks=(DOUBLE_BLOCKS, SINGLE_BLOCKS),
        modules=FLUX_MODULES,
        latent_channels=CHANNELS,
        factor=8,
        patch=PATCH,
        size=1024,
        order=("transformer_blocks", "single_transformer_blocks"),
        layerwise=False,
        abbreviations=("_transformer_blocks", ".attn"),
        host=Host(models=("Flux",)),
        diffusers=Diffusers(
            folder="transformer",
            facts={"_class_name": "FluxTransformer2DModel"},
            texts={"clip_l": clip.SMALL},
            reader=TextReader(states="text_encoder_2", tokenizer="tokenizer_2", least=256, pooled=("text_encoder", "tokenizer")),
        ),
        objective=Objective(shift=0.0, guidance=1.0, painted=3.5, cfg=1.0),
        files=LoraFiles(
            kohya="transformer.",
            dotted=True,
            roots=ROOTS,
            read_layer=reader_of(FLUX_MODULES),
            least=0.9,
            said=r"(?i)flux(?![-_. ]?2)",
            modelspec="flux-1-dev/lora",
        ),
        weigh=flux_shapes,
    )
)

CHROMA = register(
    replace(
        FLUX,
        name="chroma",
        title="Chroma",
        architecture=f"chroma-{DEPTH}+{SINGLE_DEPTH}x{WIDTH}",
        encoders=(),
        modules=CHROMA_MODULES,
        host=Host(models=("Chroma",), others=("ChromaRadiance",)),
        diffusers=Diffusers(folder="transformer", facts={"_class_name": "ChromaTransformer2DModel"}),
        objective=Objective(),
        files=replace(FLUX.files, read_layer=reader_of(CHROMA_MODULES), said=r"(?i)chroma", kin="flux1", modelspec="chroma/lora"),
        weigh=chroma_shapes,
    )
)
