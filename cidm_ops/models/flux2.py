"""Flux.2 Klein (Black Forest Labs 2026), at both of its sizes: two streams and then one, as Flux.1, with one modulation for all blocks.

A feed-forward is gated (SwiGLU, Shazeer 2020), and in the blocks of one stream it is fused with the attention in every program, so it is
here. Places on a text's tokens run on from 0 on an axis of their own. A latent is half as fine as that of Flux.1 and has 128 channels.
"""

from collections.abc import Mapping
from dataclasses import replace

from .blocks import Blocks, Linear, Sublayer
from .diffusers import Diffusers, TextReader
from .family import Family, Objective
from .flux import DOUBLE, FLUX, HOST_DOUBLE, HOST_SINGLE, ROOTS, SINGLE, SINGLE_BLOCKS, TWO_STREAMS
from .flux import DOUBLE_BLOCKS as FLUX_DOUBLE_BLOCKS
from .flux import STREAMS as FLUX_STREAMS
from .host import Host, JointText
from .lora_files import LoraFiles
from .module import Module, reader_of
from .registry import register

CHANNELS = 128
MODULATION = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")

STREAMS = (
    *FLUX_STREAMS[:4],  # of the attention
    Module(f"{HOST_DOUBLE}.img_mlp.0", [f"{DOUBLE}.ff.linear_in"], others=[f"{DOUBLE}.ff.net.0.proj"]),
    Module(f"{HOST_DOUBLE}.img_mlp.2", [f"{DOUBLE}.ff.linear_out"], others=[f"{DOUBLE}.ff.net.2"]),
    Module(f"{HOST_DOUBLE}.txt_mlp.0", [f"{DOUBLE}.ff_context.linear_in"], others=[f"{DOUBLE}.ff_context.net.0.proj"]),
    Module(f"{HOST_DOUBLE}.txt_mlp.2", [f"{DOUBLE}.ff_context.linear_out"], others=[f"{DOUBLE}.ff_context.net.2"]),
    Module(f"{HOST_SINGLE}.linear1", [f"{SINGLE}.attn.to_qkv_mlp_proj"]),
    Module(f"{HOST_SINGLE}.linear2", [f"{SINGLE}.attn.to_out"]),
)
AROUND = (
    Module("img_in", ["x_embedder"]),
    Module("txt_in", ["context_embedder"]),
    Module("final_layer.linear", ["proj_out"]),
    *(Module(f"{name}.lin", [f"{name}.linear"]) for name in MODULATION),
    *(
        Module(f"time_in.{layer}_layer", [f"time_guidance_embed.{name}"], others=[f"time_text_embed.{name}"])
        for layer, name in (("in", "timestep_embedder.linear_1"), ("out", "timestep_embedder.linear_2"))
    ),
)
MODULES = (*STREAMS, *AROUND)

BLOCKS = (
    Blocks(
        FLUX_DOUBLE_BLOCKS.pattern,
        (
            TWO_STREAMS,
            Sublayer("ff", "feed_forward", (Linear("ff.linear_in", "inner"), Linear("ff.linear_out", "outer"))),
            Sublayer(
                "ff_context",
                "feed_forward",
                (Linear("ff_context.linear_in", "inner", "text"), Linear("ff_context.linear_out", "outer", "text")),
            ),
        ),
    ),
    Blocks(
        SINGLE_BLOCKS.pattern,
        (
            Sublayer("attn", "joint", (Linear("attn.to_qkv_mlp_proj", "query", "both"),)),
            Sublayer("mlp", "feed_forward", (Linear("attn.to_out", "outer", "both"),)),
        ),
    ),
)

# The weights of blocks as multiples of the width, out and in.
DOUBLE_SHAPES = {
    **{f"attn.{name}": (1, 1) for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
    **{f"{ff}.linear_in": (6, 1) for ff in ("ff", "ff_context")},
    **{f"{ff}.linear_out": (1, 3) for ff in ("ff", "ff_context")},
}
SINGLE_SHAPES = {"attn.to_qkv_mlp_proj": (9, 1), "attn.to_out": (1, 4)}


def shapes_of(depth: int, single_depth: int, width: int, text: int) -> Mapping[str, tuple[int, int]]:
    """The weights ``(out, in)`` of its linear layers, which reads texts of a width."""
    kinds = ((DOUBLE, DOUBLE_SHAPES, depth), (SINGLE, SINGLE_SHAPES, single_depth))
    found = {
        f"{block.format(i)}.{name}": (rows * width, columns * width)
        for block, shapes, count in kinds
        for i in range(count)
        for name, (rows, columns) in shapes.items()
    }
    found |= {"x_embedder": (width, CHANNELS), "context_embedder": (width, text), "proj_out": (CHANNELS, width)}
    found |= {f"{name}.linear": ((3 if name.startswith("single") else 6) * width, width) for name in MODULATION}
    return found | {f"time_guidance_embed.timestep_embedder.linear_{i}": (width, read) for i, read in ((1, 256), (2, width))}


KLEIN_4B = register(
    Family(
        name="flux2",
        title="Flux.2 Klein",
        architecture="flux2-5+20x3072",
        encoders=(),
        blocks=BLOCKS,
        modules=MODULES,
        latent_channels=CHANNELS,
        factor=16,
        size=1024,
        order=FLUX.order,
        layerwise=False,
        abbreviations=FLUX.abbreviations,
        host=Host(models=("Flux2",), text=JointText(positions="pe_embedder", restart="begins")),
        diffusers=Diffusers(
            folder="transformer",
            facts={"_class_name": "Flux2Transformer2DModel", "guidance_embeds": False},  # Flux.2 dev has them
            reader=TextReader(layers=(9, 18, 27), least=512, chat=True, thinking=False),
            mu=2.02,
        ),
        objective=Objective(shift=7.5),  # as it is painted, e^2.02
        files=LoraFiles(
            kohya="transformer.",
            dotted=True,
            exported="diffusion_model.",  # the host knows the modulation by its own names alone
            roots=ROOTS,
            read_layer=reader_of(MODULES),
            least=0.9,
            said=r"(?i)(flux[-_. ]?2|klein)(?!.*9b)",
            kin="flux1",  # the attention of its first blocks is called as that of Flux.1, and of the same size
            modelspec="flux-2-klein-4b/lora",
        ),
        weigh=lambda family: shapes_of(5, 20, 3072, 7680),
    )
)

KLEIN_9B = register(
    replace(
        KLEIN_4B,
        title="Flux.2 Klein 9B",
        architecture="flux2-8+24x4096",
        files=replace(KLEIN_4B.files, said=r"(?i)(flux[-_. ]?2|klein).*9b", kin="flux2", modelspec="flux-2-klein-9b/lora"),
        weigh=lambda family: shapes_of(8, 24, 4096, 12288),
    )
)
