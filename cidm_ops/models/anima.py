"""Anima (CircleStone Labs 2026), made of Cosmos-Predict2 (NVIDIA 2025): a transformer of rectified flow with cross-attention.

Image tokens attend to each other, then to the text, in two attentions of every block. The text is made of two: an adapter of six blocks
reads the states of a language model at the tokens of T5, and its answers are filled up with zeros to 512. Our names are those of the host,
which trainers write too.
"""

from .blocks import Blocks, Linear, Role, Stream, Sublayer
from .diffusers import Diffusers, TextReader
from .family import Family
from .flux import ROOTS
from .host import Host, JointText
from .lora_files import LoraFiles
from .module import Module, reader_of
from .registry import register

BLOCK, THEIRS = "blocks.{}", "transformer_blocks.{}"
ADAPTER, THEIR_ADAPTER = "llm_adapter", "text_conditioner"
WIDTH, DEPTH, TEXT_WIDTH, ADAPTER_DEPTH, MODULATED_BY, PATCH, CHANNELS = 2048, 28, 1024, 6, 256, 2, 16

# Our names of the layers in a block, and those of diffusers.
ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "output_proj": "to_out.0"}
IN_BLOCK = {
    **{
        f"{own}.{layer}": f"{theirs}.{part}"
        for own, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for layer, part in ATTENTION.items()
    },
    "mlp.layer1": "ff.net.0.proj",
    "mlp.layer2": "ff.net.2",
    **{f"adaln_modulation_{of}.{i}": f"norm{n}.linear_{i}" for n, of in enumerate(("self_attn", "cross_attn", "mlp"), 1) for i in (1, 2)},
}
AROUND = {
    "x_embedder.proj.1": "patch_embed.proj",
    "final_layer.adaln_modulation.1": "norm_out.linear_1",
    "final_layer.adaln_modulation.2": "norm_out.linear_2",
    "final_layer.linear": "proj_out",
}
IN_ADAPTER = [*(f"{attention}.{part}_proj" for attention in ("self_attn", "cross_attn") for part in "qkvo"), "mlp.0", "mlp.2"]


def named(layer: str, *theirs: str) -> Module:
    """A layer that the host calls as we do, and others otherwise too, with or without the number behind the last one of an attention."""
    return Module(layer, [layer], others=[*theirs, *(name.removesuffix(".0") for name in theirs if name.endswith("to_out.0"))])


# Of a name that begins with "transformer.blocks" the underscores do not say where its dots are.
MODULES = (
    *(named(f"{BLOCK}.{own}", f"{THEIRS}.{theirs}", f"{THEIRS}.{own}") for own, theirs in IN_BLOCK.items()),
    *(named(own, theirs) for own, theirs in AROUND.items()),
    *(named(f"t_embedder.{{}}.linear_{i}") for i in (1, 2)),  # the number is no block's, it is always 1
    *(named(f"{ADAPTER}.blocks.{{}}.{layer}", f"{THEIR_ADAPTER}.blocks.{{}}.{layer}") for layer in IN_ADAPTER),
    named(f"{ADAPTER}.out_proj", f"{THEIR_ADAPTER}.out_proj"),
)


def attention(name: str, reads: Stream) -> Sublayer:
    """An attention of the image's tokens to tokens of the image or of the text."""
    roles: tuple[tuple[str, Role, Stream], ...] = (
        ("q", "query", "image"),
        ("k", "key", reads),
        ("v", "value", reads),
        ("output", "out", "image"),
    )
    return Sublayer(
        name, "cross" if reads == "text" else "self", [Linear(f"{name}.{part}_proj", role, stream) for part, role, stream in roles]
    )


BLOCKS = Blocks(
    r"blocks\.\d+",
    (
        attention("self_attn", "image"),
        attention("cross_attn", "text"),
        Sublayer("mlp", "feed_forward", (Linear("mlp.layer1", "inner"), Linear("mlp.layer2", "outer"))),
    ),
)


def shapes(family: Family) -> dict[str, tuple[int, int]]:
    """The weights ``(out, in)`` of its linear layers."""
    block = {f"{name}.{layer}": (WIDTH, WIDTH) for name in ("self_attn", "cross_attn") for layer in ATTENTION}
    block |= {f"cross_attn.{part}_proj": (WIDTH, TEXT_WIDTH) for part in "kv"}
    block |= {"mlp.layer1": (4 * WIDTH, WIDTH), "mlp.layer2": (WIDTH, 4 * WIDTH)}
    for of in ("self_attn", "cross_attn", "mlp"):
        block |= {f"adaln_modulation_{of}.1": (MODULATED_BY, WIDTH), f"adaln_modulation_{of}.2": (3 * WIDTH, MODULATED_BY)}
    adapter = dict.fromkeys(IN_ADAPTER, (TEXT_WIDTH, TEXT_WIDTH)) | {
        "mlp.0": (4 * TEXT_WIDTH, TEXT_WIDTH),
        "mlp.2": (TEXT_WIDTH, 4 * TEXT_WIDTH),
    }
    return {
        **{f"{BLOCK.format(i)}.{name}": shape for i in range(DEPTH) for name, shape in block.items()},
        "x_embedder.proj.1": (WIDTH, PATCH * PATCH * (CHANNELS + 1)),  # a channel says what is no picture
        "t_embedder.1.linear_1": (WIDTH, WIDTH),
        "t_embedder.1.linear_2": (3 * WIDTH, WIDTH),
        "final_layer.adaln_modulation.1": (MODULATED_BY, WIDTH),
        "final_layer.adaln_modulation.2": (2 * WIDTH, MODULATED_BY),
        "final_layer.linear": (PATCH * PATCH * CHANNELS, WIDTH),
        **{f"{ADAPTER}.blocks.{i}.{name}": shape for i in range(ADAPTER_DEPTH) for name, shape in adapter.items()},
        f"{ADAPTER}.out_proj": (TEXT_WIDTH, TEXT_WIDTH),
    }


ANIMA = register(
    Family(
        name="anima",
        title="Anima",
        architecture=f"anima-{DEPTH}x{WIDTH}",
        encoders=(),
        blocks=(BLOCKS,),
        modules=MODULES,
        latent_channels=CHANNELS,
        factor=8,
        patch=PATCH,
        size=1024,
        frames=True,
        order=("blocks",),
        layerwise=False,
        host=Host(models=("Anima",), text=JointText(adapter=ADAPTER, tokens="t5xxl")),
        diffusers=Diffusers(
            folder="transformer",
            names={
                **{f"{BLOCK}.{own}": f"{THEIRS}.{theirs}" for own, theirs in IN_BLOCK.items()},
                **AROUND,
                **{f"t_embedder.1.linear_{i}": f"time_embed.t_embedder.linear_{i}" for i in (1, 2)},
            },
            facts={"_class_name": "CosmosTransformer3DModel"},
            reader=TextReader(least=512, through=(THEIR_ADAPTER, "t5_tokenizer")),
        ),
        files=LoraFiles(
            kohya="diffusion_model.",
            dotted=True,
            roots=ROOTS,
            read_layer=reader_of(MODULES),
            telltale=rf"^{ADAPTER}\.",
            least=0.9,
            said=r"(?i)anima(?!te)",
            modelspec="anima/lora",
        ),
        weigh=shapes,
    )
)
