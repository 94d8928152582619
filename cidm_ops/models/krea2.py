"""Krea 2 (Krea 2026): a transformer of rectified flow in which image and text go through one stack together.

A token of the text is twelve states of a language model, of as many layers. Two blocks let them attend to each other, token by token, then
they become one and two blocks refine the text alone. Queries have more heads than keys and values, and a gate weighs what attention
answers. Our names are those of diffusers.
"""

from .blocks import Blocks, Kind, Linear, Role, Stream, Sublayer
from .diffusers import Diffusers, TextReader
from .family import Family, Objective
from .flux import ROOTS
from .host import Host, JointText
from .lora_files import LoraFiles
from .module import Module, reader_of
from .qwen import CUT, TEMPLATE
from .registry import register

WIDTH, KEYS, WIDE, DEPTH, PATCH, CHANNELS = 6144, 1536, 16384, 28, 2, 16
TEXT_WIDTH, TEXT_WIDE, TEXT_LAYERS, TEXT_DEPTH = 2560, 6912, 12, 2
STACK, ACROSS_LAYERS, REFINED = "transformer_blocks", "text_fusion.layerwise_blocks", "text_fusion.refiner_blocks"

# The host's names of the layers in a block, by ours, with what they do.
ATTENTION: dict[str, tuple[str, Role]] = {
    "to_q": ("attn.wq", "query"),
    "to_k": ("attn.wk", "key"),
    "to_v": ("attn.wv", "value"),
    "to_gate": ("attn.gate", "inner"),
    "to_out.0": ("attn.wo", "out"),
}
FEED_FORWARD: dict[str, tuple[str, Role]] = {"gate": ("mlp.gate", "inner"), "up": ("mlp.up", "inner"), "down": ("mlp.down", "outer")}
HOST_STACKS = {STACK: "blocks", ACROSS_LAYERS: "txtfusion.layerwise_blocks", REFINED: "txtfusion.refiner_blocks"}
AROUND = {
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
    "last.linear": "final_layer.linear",
}


def modules_of(ours: str, host: str) -> tuple[Module, ...]:
    """The linear layers of the blocks of a stack, by our name and the host's."""
    attention = [Module(f"{host}.{{}}.{own}", [f"{ours}.{{}}.attn.{name}"]) for name, (own, _) in ATTENTION.items()]
    attention[-1] = Module(attention[-1].name, attention[-1].layers, others=[f"{ours}.{{}}.attn.to_out"])
    return (*attention, *(Module(f"{host}.{{}}.{own}", [f"{ours}.{{}}.ff.{name}"]) for name, (own, _) in FEED_FORWARD.items()))


MODULES = (
    *(module for ours, host in HOST_STACKS.items() for module in modules_of(ours, host)),
    *(Module(host, [ours]) for host, ours in AROUND.items()),
)


def blocks_of(stack: str, kind: Kind, reads: Stream) -> Blocks:
    """The blocks of a stack, with the kind of their attention."""
    attention = Sublayer("attn", kind, [Linear(f"attn.{name}", role, reads) for name, (_, role) in ATTENTION.items()])
    wide = Sublayer("ff", "feed_forward", [Linear(f"ff.{name}", role, reads) for name, (_, role) in FEED_FORWARD.items()])
    return Blocks(rf"{stack}\.\d+".replace("text_fusion.", r"text_fusion\."), (attention, wide))


BLOCKS = (
    blocks_of(ACROSS_LAYERS, "feed_forward", "text"),  # to which a token is what a batch is to others: no token sees another
    blocks_of(REFINED, "self", "text"),
    blocks_of(STACK, "joint", "both"),
)


def shapes(family: Family) -> dict[str, tuple[int, int]]:
    """The weights ``(out, in)`` of its linear layers."""

    def of_block(width: int, keys: int, wide: int) -> dict[str, tuple[int, int]]:
        square = dict.fromkeys((f"attn.{name}" for name in ATTENTION), (width, width))
        grouped = dict.fromkeys(("attn.to_k", "attn.to_v"), (keys, width))
        return square | grouped | {"ff.gate": (wide, width), "ff.up": (wide, width), "ff.down": (width, wide)}

    text, both = of_block(TEXT_WIDTH, TEXT_WIDTH, TEXT_WIDE), of_block(WIDTH, KEYS, WIDE)
    stacks = ((ACROSS_LAYERS, text, TEXT_DEPTH), (REFINED, text, TEXT_DEPTH), (STACK, both, DEPTH))
    return {
        **{f"{stack}.{i}.{name}": shape for stack, own, depth in stacks for i in range(depth) for name, shape in own.items()},
        "img_in": (WIDTH, PATCH * PATCH * CHANNELS),
        "time_embed.linear_1": (WIDTH, 256),
        "time_embed.linear_2": (WIDTH, WIDTH),
        "time_mod_proj": (6 * WIDTH, WIDTH),
        "txt_in.linear_1": (WIDTH, TEXT_WIDTH),
        "txt_in.linear_2": (WIDTH, WIDTH),
        "text_fusion.projector": (1, TEXT_LAYERS),
        "final_layer.linear": (PATCH * PATCH * CHANNELS, WIDTH),
    }


KREA2 = register(
    Family(
        name="krea2",
        title="Krea 2",
        architecture=f"krea2-{DEPTH}x{WIDTH}",
        encoders=(),
        blocks=BLOCKS,
        modules=MODULES,
        latent_channels=CHANNELS,
        factor=8,
        patch=PATCH,
        size=1024,
        frames=True,
        order=(ACROSS_LAYERS, REFINED, STACK),
        layerwise=False,
        abbreviations=("_blocks", ".attn"),
        host=Host(models=("Krea2",), text=JointText()),
        diffusers=Diffusers(
            folder="transformer",
            facts={"_class_name": "Krea2Transformer2DModel"},
            reader=TextReader(layers=range(2, 36, 3), template=TEMPLATE, cut=CUT),
        ),
        objective=Objective(shift=2.5),
        files=LoraFiles(
            kohya="transformer.",
            dotted=True,
            roots=ROOTS,
            read_layer=reader_of(MODULES),
            telltale=r"text_fusion|attn\.to_gate|\.ff\.(gate|up|down)$",
            least=0.9,
            said=r"(?i)krea[-_ ]?2",
            modelspec="krea-2/lora",
        ),
        weigh=shapes,
    )
)
