"""NextDiT (Zhuo et al. 2024): Lumina Image 2.0 and Z-Image.

Two short stacks of blocks refine the text and the image apart, then the tokens of both go through one stack together. Lumina's queries
have more heads than its keys and values (grouped queries, Ainslie et al. 2023). Our names are those of diffusers, which differ between
the two models.
"""

from dataclasses import replace

from .blocks import Blocks, Linear, Role, Stream, Sublayer
from .diffusers import Diffusers, TextReader
from .family import Family, Objective
from .host import Host, JointText
from .lora_files import LoraFiles
from .module import Module, reader_of
from .registry import register

ROOTS = ("lora_unet", "lora_transformer", "lycoris", "transformer", "(?:model_)?diffusion_model", "unet")
REFINER_DEPTH, CHANNELS, PATCH = 2, 16, 2
TEXT, IMAGE, BOTH = "context_refiner", "noise_refiner", "layers"


def grouped_queries(total: int, width: int) -> tuple[int, ...]:
    """Queries as wide as the model, then keys and values of half the rest each."""
    return width, (total - width) // 2, (total - width) // 2


def modules_of(attention: str, gate: str, outer: str, inner: str, modulation: str, modulated_by: str) -> tuple[Module, ...]:
    """The linear layers of the blocks: ours by the names of the attention and of the three layers of the feed-forward, which is
    ``outer(silu(gate(x)) * inner(x))``, and the modulation by the host's and our name.
    """
    found = []
    for stage in (TEXT, IMAGE, BOTH):
        block = f"{stage}.{{}}"
        own = f"{block}.{attention}"
        found += [
            Module(f"{block}.attention.qkv", [f"{own}.to_{p}" for p in "qkv"], grouped_queries),
            Module(f"{block}.attention.out", [f"{own}.to_out.0"], others=[f"{own}.to_out"]),
            Module(f"{block}.feed_forward.w1", [f"{block}.feed_forward.{gate}"]),
            Module(f"{block}.feed_forward.w2", [f"{block}.feed_forward.{outer}"]),
            Module(f"{block}.feed_forward.w3", [f"{block}.feed_forward.{inner}"]),
        ]
        if stage != TEXT:
            found.append(Module(f"{block}.{modulation}", [f"{block}.{modulated_by}"]))
    return tuple(found)


def blocks_of(attention: str, gate: str, outer: str, inner: str) -> tuple[Blocks, ...]:
    """The blocks in the order in which they run, by the same names."""

    def block(stage: str, reads: Stream) -> Blocks:
        roles: tuple[tuple[str, Role], ...] = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "out"))
        parts = [Linear(f"{attention}.{name}", role, reads) for name, role in roles]
        layers: tuple[tuple[str, Role], ...] = ((gate, "inner"), (inner, "inner"), (outer, "outer"))
        wide = [Linear(f"feed_forward.{name}", role, reads) for name, role in layers]
        kind = Sublayer(attention, "joint" if reads == "both" else "self", parts)
        return Blocks(rf"{stage}\.\d+", (kind, Sublayer("feed_forward", "feed_forward", wide)))

    return block(TEXT, "text"), block(IMAGE, "image"), block(BOTH, "both")


LUMINA_NAMES = ("attn", "linear_1", "linear_2", "linear_3")
Z_NAMES = ("attention", "w1", "w2", "w3")


def shapes_of(
    family: Family, names: tuple[str, str, str, str], keys: int, wide: int, modulation: tuple[str, int], refiners: int = REFINER_DEPTH
) -> dict[str, tuple[int, int]]:
    """The weights ``(out, in)`` of the blocks: ``keys`` and ``wide`` are the widths of keys and of the feed-forward, ``modulation`` its
    name and how many features it reads, ``refiners`` the blocks of text and of image apart.
    """
    attention, gate, outer, inner = names
    width, depth = family.width, int(family.architecture.partition("-")[2].partition("x")[0])
    block = {
        f"{attention}.to_q": (width, width),
        f"{attention}.to_k": (keys, width),
        f"{attention}.to_v": (keys, width),
        f"{attention}.to_out.0": (width, width),
        f"feed_forward.{gate}": (wide, width),
        f"feed_forward.{inner}": (wide, width),
        f"feed_forward.{outer}": (width, wide),
    }
    name, read = modulation
    modulated = block | {name: (4 * width, read)}
    stages = ((TEXT, block, refiners), (IMAGE, modulated, refiners), (BOTH, modulated, depth))
    return {f"{stage}.{i}.{part}": shape for stage, own, count in stages for i in range(count) for part, shape in own.items()}


def lumina_shapes(
    family: Family, keys: int = 768, wide: int = 9216, text: int = 2304, refiners: int = REFINER_DEPTH
) -> dict[str, tuple[int, int]]:
    """The weights of Lumina's linear layers, as in ``shapes_of``; it reads a ``text`` of that width."""
    time = min(family.width, 1024)
    around = {
        "x_embedder": (family.width, PATCH * PATCH * CHANNELS),
        "time_caption_embed.caption_embedder.1": (family.width, text),
        "time_caption_embed.timestep_embedder.linear_1": (time, 256),
        "time_caption_embed.timestep_embedder.linear_2": (time, time),
        "norm_out.linear_1": (family.width, time),
        "norm_out.linear_2": (PATCH * PATCH * CHANNELS, family.width),
    }
    return shapes_of(family, LUMINA_NAMES, keys, wide, ("norm1.linear", time), refiners) | around


def z_shapes(family: Family) -> dict[str, tuple[int, int]]:
    """The weights of the linear layers of Z-Image."""
    around = {
        "all_x_embedder.2-1": (family.width, PATCH * PATCH * CHANNELS),
        "cap_embedder.1": (family.width, 2560),
        "t_embedder.mlp.0": (1024, 256),
        "t_embedder.mlp.2": (256, 1024),
        "all_final_layer.2-1.linear": (PATCH * PATCH * CHANNELS, family.width),
        "all_final_layer.2-1.adaLN_modulation.1": (family.width, 256),
    }
    return shapes_of(family, Z_NAMES, family.width, 10240, ("adaLN_modulation.0", 256)) | around


LUMINA_MODULES = (
    *modules_of(*LUMINA_NAMES, "adaLN_modulation.1", "norm1.linear"),
    Module("x_embedder", ["x_embedder"]),
    Module("cap_embedder.1", ["time_caption_embed.caption_embedder.1"]),
    Module("t_embedder.mlp.0", ["time_caption_embed.timestep_embedder.linear_1"]),
    Module("t_embedder.mlp.2", ["time_caption_embed.timestep_embedder.linear_2"]),
    Module("final_layer.adaLN_modulation.1", ["norm_out.linear_1"]),
    Module("final_layer.linear", ["norm_out.linear_2"]),
)
Z_MODULES = (
    *modules_of(*Z_NAMES, "adaLN_modulation.0", "adaLN_modulation.0"),
    Module("x_embedder", ["all_x_embedder.2-1"]),
    Module("cap_embedder.1", ["cap_embedder.1"]),
    Module("t_embedder.mlp.0", ["t_embedder.mlp.0"]),
    Module("t_embedder.mlp.2", ["t_embedder.mlp.2"]),
    Module("final_layer.adaLN_modulation.1", ["all_final_layer.2-1.adaLN_modulation.1"]),
    Module("final_layer.linear", ["all_final_layer.2-1.linear"]),
)

# What of Lumina is no linear layer: diffusers' names, as regular expressions, and the host's.
LUMINA_NORMS = {
    r"(.+)\.attn\.norm_([qk])\.weight": r"\1.attention.\2_norm.weight",
    r"(.+)\.norm1(?:\.norm)?\.weight": r"\1.attention_norm1.weight",
    r"(.+)\.norm2\.weight": r"\1.attention_norm2.weight",
    r"(.+\.ffn_norm[12]\.weight)": r"\1",
    r"time_caption_embed\.caption_embedder\.0\.weight": "cap_embedder.0.weight",
}

TOGETHER = JointText(
    positions="rope_embedder",
    embedder="cap_embedder",
    count="num_tokens",
    mask="attention_mask",
    pictures=("ref_latents", "ref_contexts", "siglip_feats"),
)

LUMINA = register(
    Family(
        name="lumina2",
        title="Lumina 2",
        architecture="lumina2-26x2304",
        encoders=(),
        blocks=blocks_of(*LUMINA_NAMES),
        modules=LUMINA_MODULES,
        latent_channels=CHANNELS,
        factor=8,
        patch=PATCH,
        size=1024,
        order=(TEXT, IMAGE, BOTH),
        layerwise=False,
        abbreviations=(".attn",),
        host=Host(models=("Lumina2",), others=("ZImagePixelSpace",), text=TOGETHER),
        diffusers=Diffusers(folder="transformer", facts={"_class_name": "Lumina2Transformer2DModel"}, reader=TextReader(layer=-2)),
        files=LoraFiles(
            kohya="transformer.",
            dotted=True,
            exported="diffusion_model.",  # the host knows Lumina's layers as they lie in its own modules alone
            roots=ROOTS,
            read_layer=reader_of(LUMINA_MODULES),
            least=0.9,
            said=r"(?i)lumina",
            modelspec="lumina-2/lora",
        ),
        weigh=lumina_shapes,
    )
)

Z_IMAGE = register(
    replace(
        LUMINA,
        name="zimage",
        title="Z-Image",
        architecture="zimage-30x3840",
        blocks=blocks_of(*Z_NAMES),
        modules=Z_MODULES,
        abbreviations=(".attention",),
        host=Host(models=("ZImage",), others=("ZImagePixelSpace",), text=replace(TOGETHER, pad="cap_pad_token", multiple=32)),
        diffusers=Diffusers(
            folder="transformer", facts={"_class_name": "ZImageTransformer2DModel"}, reader=TextReader(layer=-2, chat=True), multiple=32
        ),
        objective=Objective(shift=2.0),
        files=replace(LUMINA.files, exported="", read_layer=reader_of(Z_MODULES), said=r"(?i)z[-_ ]?image", modelspec="z-image/lora"),
        weigh=z_shapes,
    )
)
