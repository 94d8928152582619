"""What a transformer of each family is made of at a width of 24, written by hand: rows and columns of the host's modules, and which parts
of them diffusers has under which names.
"""

from cidm_ops.models.anima import ANIMA
from cidm_ops.models.flux import CHROMA, FLUX
from cidm_ops.models.flux2 import KLEIN_4B
from cidm_ops.models.krea2 import KREA2
from cidm_ops.models.mmdit import MEDIUM
from cidm_ops.models.nextdit import LUMINA, Z_IMAGE
from cidm_ops.models.qwen import QWEN

TRANSFORMERS = [FLUX, CHROMA, LUMINA, Z_IMAGE, QWEN, MEDIUM, KLEIN_4B, ANIMA, KREA2]
SMALL = {FLUX: "flux1-1+1x24", CHROMA: "chroma-1+1x24", LUMINA: "lumina2-1x24", Z_IMAGE: "zimage-1x24", QWEN: "qwenimage-1x24"}
SMALL |= {MEDIUM: "sd3-2x24", KLEIN_4B: "flux2-1+1x24", ANIMA: "anima-1x24", KREA2: "krea2-1x24"}
# Written by hand, not taken from the families: rows and columns of the host's modules at a width of 24, by the names in the host.
DOUBLE = {
    **{f"{s}_attn.qkv": (72, 24) for s in ("img", "txt")},
    **{f"{s}_attn.proj": (24, 24) for s in ("img", "txt")},
    **{f"{s}_mlp.0": (96, 24) for s in ("img", "txt")},
    **{f"{s}_mlp.2": (24, 96) for s in ("img", "txt")},
}
FLUX_HOST = {f"double_blocks.0.{n}": s for n, s in DOUBLE.items()} | {
    "single_blocks.0.linear1": (168, 24),
    "single_blocks.0.linear2": (24, 120),
}
MODULATION = {f"double_blocks.0.{s}_mod.lin": (144, 24) for s in ("img", "txt")} | {"single_blocks.0.modulation.lin": (72, 24)}


def nextdit_host(keys: int, modulation: str) -> dict[str, tuple[int, int]]:
    block = {"attention.qkv": (24 + 2 * keys, 24), "attention.out": (24, 24)}
    block |= {"feed_forward.w1": (40, 24), "feed_forward.w2": (24, 40), "feed_forward.w3": (40, 24)}
    return {f"{stage}.0.{n}": s for stage in ("layers", "context_refiner", "noise_refiner") for n, s in block.items()} | {
        f"{stage}.0.{modulation}": (96, 24) for stage in ("layers", "noise_refiner")
    }


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
QWEN_HOST = {
    **{f"transformer_blocks.0.attn.{n}": (24, 24) for n in ATTENTION},
    **{f"transformer_blocks.0.{s}_mlp.net.0.proj": (96, 24) for s in ("img", "txt")},
    **{f"transformer_blocks.0.{s}_mlp.net.2": (24, 96) for s in ("img", "txt")},
    **{f"transformer_blocks.0.{s}_mod.1": (144, 24) for s in ("img", "txt")},
}
SD3_PARTS = {
    "joint_blocks.0.x_block.attn.qkv": ("to_q", "to_k", "to_v"),
    "joint_blocks.0.context_block.attn.qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "joint_blocks.0.x_block.attn2.qkv": ("to_q", "to_k", "to_v"),
}
SD3_NAMES = {
    **{f"x_block.{attn}.proj": f"{attn}.to_out.0" for attn in ("attn", "attn2")},
    "context_block.attn.proj": "attn.to_add_out",
    **{f"{s}_block.mlp.fc{i}": f"{ff}.net.{n}" for s, ff in (("x", "ff"), ("context", "ff_context")) for i, n in ((1, "0.proj"), (2, "2"))},
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
}
SD3_SHAPES = {"attn.proj": (24, 24), "attn2.proj": (24, 24), "mlp.fc1": (96, 24), "mlp.fc2": (24, 96), "adaLN_modulation.1": (144, 24)}
SD3_HOST = dict.fromkeys(SD3_PARTS, (72, 24)) | {f"joint_blocks.0.{n}": SD3_SHAPES[n.partition(".")[2]] for n in SD3_NAMES}
KLEIN_HOST = {n: s for n, s in FLUX_HOST.items() if "_mlp" not in n} | {
    **{f"double_blocks.0.{s}_mlp.0": (144, 24) for s in ("img", "txt")},
    **{f"double_blocks.0.{s}_mlp.2": (24, 72) for s in ("img", "txt")},
    **{f"double_stream_modulation_{s}.lin": (144, 24) for s in ("img", "txt")},
    "single_stream_modulation.lin": (72, 24),
    "single_blocks.0.linear1": (216, 24),
    "single_blocks.0.linear2": (24, 96),
}
# The text is 16 wide, what modulates 8.
ANIMA_HOST = {
    **{f"blocks.0.{a}_attn.{n}": (24, 24) for a in ("self", "cross") for n in ("q_proj", "k_proj", "v_proj", "output_proj")},
    **{f"blocks.0.cross_attn.{n}_proj": (24, 16) for n in "kv"},
    **{"blocks.0.mlp.layer1": (96, 24), "blocks.0.mlp.layer2": (24, 96)},
    **{
        f"blocks.0.adaln_modulation_{of}.{i}": shape
        for of in ("self_attn", "cross_attn", "mlp")
        for i, shape in ((1, (8, 24)), (2, (72, 8)))
    },
    **{"x_embedder.proj.1": (24, 68), "t_embedder.1.linear_1": (24, 24), "t_embedder.1.linear_2": (72, 24)},
    **{f"final_layer.{n}": s for n, s in (("adaln_modulation.1", (8, 24)), ("adaln_modulation.2", (48, 8)), ("linear", (64, 24)))},
    **{f"llm_adapter.blocks.0.{a}_attn.{n}_proj": (16, 16) for a in ("self", "cross") for n in "qkvo"},
    **{"llm_adapter.blocks.0.mlp.0": (64, 16), "llm_adapter.blocks.0.mlp.2": (16, 64), "llm_adapter.out_proj": (16, 16)},
}
# Keys are 8 wide, the text 16, of 3 layers.
KREA2_STACKS = {"blocks": "transformer_blocks"} | {f"txtfusion.{n}_blocks": f"text_fusion.{n}_blocks" for n in ("layerwise", "refiner")}
KREA2_LAYERS = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.gate": "attn.to_gate",
    "attn.wo": "attn.to_out.0",
}
KREA2_LAYERS |= {f"mlp.{n}": f"ff.{n}" for n in ("gate", "up", "down")}
KREA2_AROUND = {
    "first": ("img_in", (24, 64)),
    "tmlp.0": ("time_embed.linear_1", (24, 10)),
    "tmlp.2": ("time_embed.linear_2", (24, 24)),
    "tproj.1": ("time_mod_proj", (144, 24)),
    "txtmlp.1": ("txt_in.linear_1", (24, 16)),
    "txtmlp.3": ("txt_in.linear_2", (24, 24)),
    "txtfusion.projector": ("text_fusion.projector", (1, 3)),
    "last.linear": ("final_layer.linear", (64, 24)),
}


def krea2_block(width: int, keys: int) -> dict[str, tuple[int, int]]:
    wide = {"mlp.gate": (40, width), "mlp.up": (40, width), "mlp.down": (width, 40)}
    return dict.fromkeys(KREA2_LAYERS, (width, width)) | {"attn.wk": (keys, width), "attn.wv": (keys, width)} | wide


KREA2_HOST = {
    f"{stack}.0.{n}": shape
    for stack in KREA2_STACKS
    for n, shape in (krea2_block(24, 8) if stack == "blocks" else krea2_block(16, 16)).items()
} | {n: shape for n, (_, shape) in KREA2_AROUND.items()}
HOST = {
    KLEIN_4B: KLEIN_HOST,
    MEDIUM: SD3_HOST | {"joint_blocks.0.x_block.adaLN_modulation.1": (216, 24)},
    FLUX: FLUX_HOST | MODULATION,
    CHROMA: FLUX_HOST,
    LUMINA: nextdit_host(8, "adaLN_modulation.1"),
    Z_IMAGE: nextdit_host(24, "adaLN_modulation.0"),
    QWEN: QWEN_HOST,
    ANIMA: ANIMA_HOST,
    KREA2: KREA2_HOST,
}
# Parts of the host's modules, by diffusers' names, with their rows.
QKV = {f"to_{p}": slice(24 * i, 24 * i + 24) for i, p in enumerate("qkv")}
LUMINA_QKV = {"to_q": slice(0, 24), "to_k": slice(24, 32), "to_v": slice(32, 40)}
FLUX_PARTS = {
    "double_blocks.0.img_attn.qkv": {f"transformer_blocks.0.attn.{n}": rows for n, rows in QKV.items()},
    "double_blocks.0.txt_attn.qkv": {f"transformer_blocks.0.attn.add_{n[3:]}_proj": rows for n, rows in QKV.items()},
    "single_blocks.0.linear1": {f"single_transformer_blocks.0.attn.{n}": rows for n, rows in QKV.items()}
    | {"single_transformer_blocks.0.proj_mlp": slice(72, 168)},
}
FLUX_NAMES = {
    "double_blocks.0.img_attn.proj": "transformer_blocks.0.attn.to_out.0",
    "double_blocks.0.txt_attn.proj": "transformer_blocks.0.attn.to_add_out",
    "double_blocks.0.img_mlp.0": "transformer_blocks.0.ff.net.0.proj",
    "double_blocks.0.img_mlp.2": "transformer_blocks.0.ff.net.2",
    "double_blocks.0.txt_mlp.0": "transformer_blocks.0.ff_context.net.0.proj",
    "double_blocks.0.txt_mlp.2": "transformer_blocks.0.ff_context.net.2",
    "double_blocks.0.img_mod.lin": "transformer_blocks.0.norm1.linear",
    "double_blocks.0.txt_mod.lin": "transformer_blocks.0.norm1_context.linear",
    "single_blocks.0.linear2": "single_transformer_blocks.0.proj_out",
    "single_blocks.0.modulation.lin": "single_transformer_blocks.0.norm.linear",
}
KLEIN_NAMES = {
    **{n: d for n, d in FLUX_NAMES.items() if "attn" in n},
    **{f"double_blocks.0.{s}_mlp.0": f"transformer_blocks.0.{ff}.linear_in" for s, ff in (("img", "ff"), ("txt", "ff_context"))},
    **{f"double_blocks.0.{s}_mlp.2": f"transformer_blocks.0.{ff}.linear_out" for s, ff in (("img", "ff"), ("txt", "ff_context"))},
    "single_blocks.0.linear1": "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
    "single_blocks.0.linear2": "single_transformer_blocks.0.attn.to_out",
}
DIFFUSERS = {
    LUMINA: {"attention.out": "attn.to_out.0", "adaLN_modulation.1": "norm1.linear"}
    | {f"feed_forward.w{i}": f"feed_forward.linear_{i}" for i in (1, 2, 3)},
    Z_IMAGE: {"attention.out": "attention.to_out.0"},
}


def parts_of(family, module: str) -> dict[str, slice]:
    """Diffusers' names of a module of the host, and the rows that each has."""
    if family in (QWEN, ANIMA):
        return {module: slice(None)}
    if family is KREA2:
        stack, _, layer = module.partition(".0.")
        ours = KREA2_AROUND[module][0] if module in KREA2_AROUND else f"{KREA2_STACKS[stack]}.0.{KREA2_LAYERS[layer]}"
        return {ours: slice(None)}
    if family is KLEIN_4B and "_attn.qkv" not in module:
        return {KLEIN_NAMES.get(module, module.replace(".lin", ".linear")): slice(None)}
    if family in (FLUX, CHROMA, KLEIN_4B):
        return FLUX_PARTS.get(module) or {FLUX_NAMES[module]: slice(None)}
    block, number, name = module.split(".", 2)
    if family is MEDIUM:
        if found := SD3_PARTS.get(module):
            attention = f"transformer_blocks.0.{name.split('.')[1]}"
            return {f"{attention}.{n}": rows for n, rows in zip(found, QKV.values(), strict=True)}
        return {f"transformer_blocks.0.{SD3_NAMES[name]}": slice(None)}
    if name != "attention.qkv":
        return {f"{block}.{number}.{DIFFUSERS[family].get(name, name)}": slice(None)}
    attention = "attn" if family is LUMINA else "attention"
    rows = LUMINA_QKV if family is LUMINA else QKV
    return {f"{block}.{number}.{attention}.{n}": r for n, r in rows.items()}
