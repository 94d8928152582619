"""Qwen-Image (Wu et al. 2025), its later versions and Qwen-Image-Edit: a transformer of rectified flow in two streams.

Image and text tokens have weights of their own in every block and attend to each other there. Places on a text's tokens run on from half
of the longer side of the picture, on all axes alike, so they do not depend on other texts. The host, diffusers and the trainers have the
same names for its layers, one for each.
"""

from .blocks import Blocks, Linear, Sublayer
from .diffusers import Diffusers, TextReader
from .family import Family, Objective
from .flux import TWO_STREAMS
from .host import Host, JointText
from .lora_files import LoraFiles
from .module import Module, reader_of
from .registry import register

ROOTS = ("lora_unet", "lora_transformer", "lycoris", "transformer(?!_blocks)", "(?:model_)?diffusion_model", "unet")
BLOCK = "transformer_blocks.{}"
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
CUT = 34  # tokens of it, up to the text
WIDTH, DEPTH, TEXT_WIDTH, PATCH, CHANNELS = 3072, 60, 3584, 2, 16

# The weights of a block as multiples of the width, out and in.
STREAMS = {
    **{f"attn.{name}": (1, 1) for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
    **{f"{mlp}.net.0.proj": (4, 1) for mlp in ("img_mlp", "txt_mlp")},
    **{f"{mlp}.net.2": (1, 4) for mlp in ("img_mlp", "txt_mlp")},
}
MODULATION = {"img_mod.1": (6, 1), "txt_mod.1": (6, 1)}
AROUND = {
    "img_in": (WIDTH, PATCH * PATCH * CHANNELS),
    "txt_in": (WIDTH, TEXT_WIDTH),
    "time_text_embed.timestep_embedder.linear_1": (WIDTH, 256),
    "time_text_embed.timestep_embedder.linear_2": (WIDTH, WIDTH),
    "norm_out.linear": (2 * WIDTH, WIDTH),
    "proj_out": (PATCH * PATCH * CHANNELS, WIDTH),
}


def named(layer: str) -> Module:
    """A layer that everybody calls the same, but for the number that some leave out."""
    return Module(layer, [layer], others=[layer.removesuffix(".0")] if layer.endswith("to_out.0") else ())


MODULES = (*(named(f"{BLOCK}.{name}") for name in (*STREAMS, *MODULATION)), *map(named, AROUND))

BLOCKS = Blocks(
    r"transformer_blocks\.\d+",
    (
        TWO_STREAMS,
        Sublayer("img_mlp", "feed_forward", (Linear("img_mlp.net.0.proj", "inner"), Linear("img_mlp.net.2", "outer"))),
        Sublayer("txt_mlp", "feed_forward", (Linear("txt_mlp.net.0.proj", "inner", "text"), Linear("txt_mlp.net.2", "outer", "text"))),
    ),
)


def shapes(family: Family) -> dict[str, tuple[int, int]]:
    """The weights ``(out, in)`` of its linear layers."""
    block = {name: (rows * WIDTH, columns * WIDTH) for name, (rows, columns) in (STREAMS | MODULATION).items()}
    return {f"{BLOCK.format(i)}.{name}": shape for i in range(DEPTH) for name, shape in block.items()} | AROUND


QWEN = register(
    Family(
        name="qwenimage",
        title="Qwen-Image",
        architecture=f"qwenimage-{DEPTH}x{WIDTH}",
        encoders=(),
        blocks=(BLOCKS,),
        modules=MODULES,
        latent_channels=CHANNELS,
        factor=8,
        patch=PATCH,
        size=1328,
        frames=True,
        order=("transformer_blocks",),
        unread=r"attn\.(add_q_proj|to_add_out)|txt_mlp\..+",
        layerwise=False,
        abbreviations=("_transformer_blocks", ".attn"),
        host=Host(models=("QwenImage",), text=JointText(positions="pe_embedder", restart="begins", mask="attention_mask")),
        diffusers=Diffusers(
            folder="transformer", facts={"_class_name": "QwenImageTransformer2DModel"}, reader=TextReader(template=TEMPLATE, cut=CUT)
        ),
        objective=Objective(shift=2.2),
        files=LoraFiles(
            kohya="transformer.",
            dotted=True,
            roots=ROOTS,
            read_layer=reader_of(MODULES),
            telltale=r"\.(img|txt)_(mlp\.net|mod\.1)",
            least=0.9,
            said=r"(?i)qwen",
            kin="flux1",  # the attention of its first blocks is called as that of Flux.1, and of the same size
            modelspec="qwen-image/lora",
        ),
        weigh=shapes,
    )
)
