"""ComfyUI and diffusers paint the same picture of a transformer in regions, from the same weights, texts and noise, in fp32."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    CosmosTransformer3DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    Lumina2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder
from safetensors.torch import load_file
from torch import nn

from cidm_ops.bank.concept import Concept
from cidm_ops.concept_text import ConceptText
from cidm_ops.engines.transformer import DiffusersTransformer
from cidm_ops.lowrank import LowRank
from cidm_ops.method.regions import RegionMask, box_mask
from cidm_ops.models.family import Family
from cidm_ops.models.krea2 import HOST_STACKS
from cidm_ops.models.module import without_number
from cidm_ops.models.registry import family_of
from cidm_ops.painting.config import NoiseEstimation
from cidm_ops.painting.joint_paint import begin_joint, predict_joint
from cidm_ops.painting.sampling import sample
from cidm_ops.painting.scene import ConceptStack, Scene
from cidm_ops.row_plan import RowPlan
from cidm_ops.tokens import Text

TEXT, POOLED = 48, 32
LUMINA = dict(
    sample_size=8, in_channels=16, hidden_size=64, num_layers=2, num_refiner_layers=2, num_attention_heads=4, num_kv_heads=2,
    axes_dim_rope=(4, 6, 6), cap_feat_dim=TEXT,
)  # fmt: skip


def z_image() -> nn.Module:
    """The host makes the features of the time as many as the width, where diffusers has 1024."""
    model = ZImageTransformer2DModel(
        dim=384, n_layers=2, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=TEXT, rope_theta=10000.0, axes_lens=[300, 64, 64]
    )
    model.t_embedder = TimestepEmbedder(256, mid_size=384)
    return model


MODELS = {
    "Flux": lambda: FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=TEXT,
        pooled_projection_dim=POOLED, guidance_embeds=True, axes_dims_rope=(8, 12, 12),
    ),
    "Lumina2": lambda: Lumina2Transformer2DModel(**LUMINA),
    "QwenImage": lambda: QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=TEXT, axes_dims_rope=(8, 12, 12)
    ),
    "Flux2": lambda: Flux2Transformer2DModel(
        num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=TEXT, guidance_embeds=False,
        axes_dims_rope=(8, 8, 8, 8),
    ),
    "SD3": lambda: SD3Transformer2DModel(
        num_layers=2, attention_head_dim=64, num_attention_heads=2, joint_attention_dim=TEXT, caption_projection_dim=128,
        pooled_projection_dim=POOLED, pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    ),
    "ZImage": z_image,
    "Anima": lambda: CosmosTransformer3DModel(
        num_layers=2, attention_head_dim=32, num_attention_heads=2, text_embed_dim=TEXT, adaln_lora_dim=16, rope_scale=(1.0, 1.0, 1.0),
        extra_pos_embed_type=None,
    ),
    "Krea2": lambda: Krea2Transformer2DModel(
        num_layers=2, attention_head_dim=32, num_attention_heads=2, num_key_value_heads=1, intermediate_size=256, text_hidden_dim=TEXT // 2,
        num_text_layers=2, text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=128, axes_dims_rope=(8, 12, 12),
    ),
}  # fmt: skip
FAMILIES = {"Flux": "flux1-2+2x64", "Lumina2": "lumina2-2x64", "ZImage": "zimage-2x384", "QwenImage": "qwenimage-2x64"}
FAMILIES |= {"SD3": "sd3-2x128", "Flux2": "flux2-2+2x64", "Anima": "anima-2x64", "Krea2": "krea2-2x64"}
KREA2 = {
    r"mod\.lin": "scale_shift_table",
    r"prenorm\.scale": "norm1.weight",
    r"postnorm\.scale": "norm2.weight",
    r"attn\.qknorm\.([qk])norm\.scale": r"attn.norm_\2.weight",
}
# What is no linear layer that a LoRA can change, in the host's names and in those of diffusers.
OTHERS: dict[str, dict[str, str]] = {
    "QwenImage": {},
    "SD3": {
        r"joint_blocks\.(\d+)\.x_block\.(attn2?)\.ln_([qk])\.weight": r"transformer_blocks.\1.\2.norm_\3.weight",
        r"joint_blocks\.(\d+)\.context_block\.attn\.ln_([qk])\.weight": r"transformer_blocks.\1.attn.norm_added_\2.weight",
        r"x_embedder\.proj\.(weight|bias)": r"pos_embed.proj.\1",
        r"pos_embed": "pos_embed.pos_embed",
    },
    "Flux": {
        r"double_blocks\.(\d+)\.img_attn\.norm\.(q|k)\w+\.\w+": r"transformer_blocks.\1.attn.norm_\2.weight",
        r"double_blocks\.(\d+)\.txt_attn\.norm\.(q|k)\w+\.\w+": r"transformer_blocks.\1.attn.norm_added_\2.weight",
        r"single_blocks\.(\d+)\.norm\.(q|k)\w+\.\w+": r"single_transformer_blocks.\1.attn.norm_\2.weight",
    },
    "Lumina2": {
        r"(.*)\.attention\.([qk])_norm\.weight": r"\1.attn.norm_\2.weight",
        r"((?:noise_refiner|layers)\.\d+)\.attention_norm1\.weight": r"\1.norm1.norm.weight",
        r"(context_refiner\.\d+)\.attention_norm1\.weight": r"\1.norm1.weight",
        r"(.*)\.attention_norm2\.weight": r"\1.norm2.weight",
        r"cap_embedder\.0\.weight": "time_caption_embed.caption_embedder.0.weight",
    },
    "Anima": {
        r"blocks\.(\d+)\.self_attn\.([qk])_norm\.weight": r"transformer_blocks.\1.attn1.norm_\2.weight",
        r"blocks\.(\d+)\.cross_attn\.([qk])_norm\.weight": r"transformer_blocks.\1.attn2.norm_\2.weight",
        r"t_embedding_norm\.weight": "time_embed.norm.weight",
    },
    "ZImage": {r"(.*)\.attention\.([qk])_norm\.weight": r"\1.attention.norm_\2.weight"},
}
OTHERS["Flux2"] = OTHERS["Flux"]
OTHERS["Krea2"] = {
    **{rf"{host}\.(\d+)\.{theirs}": rf"{ours}.\1.{own}" for ours, host in HOST_STACKS.items() for theirs, own in KREA2.items()},
    r"txtmlp\.0\.scale": "txt_in.norm.weight",
    r"last\.norm\.scale": "final_layer.norm.weight",
    r"last\.modulation\.lin": "final_layer.scale_shift_table",
}
TURNED = {"Flux": {"final_layer.adaLN_modulation.1": "norm_out.linear"}}
TURNED["Flux2"] = TURNED["Flux"]
TURNED["SD3"] = TURNED["Flux"] | {"joint_blocks.1.context_block.adaLN_modulation.1": "transformer_blocks.1.norm1_context.linear"}
MASKS = (RegionMask(box_mask(0, 0, 0.6, 1), feather=0.2), RegionMask(box_mask(0.5, 0.2, 1, 1), 0.8, priority=1))
SCENES: dict[str, dict[str, Any]] = {
    "one pass": {"guidance": 1.2},
    "apart": {"apart": 0.5},
    "passes": {"estimation": NoiseEstimation(alpha=0.3, end=0.6, bootstrap=0.3), "negative": False},
}


def in_names_of_diffusers(kind: str, family: Family, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The host's weights as diffusers has them."""
    linears = {key.removesuffix(".weight"): (len(w), w.shape[1]) for key, w in state.items() if key.endswith(".weight") and w.ndim == 2}
    found = {}
    for layer, at in family.layout(linears).items():
        pattern, number = without_number(layer)
        names = family.diffusers.names
        theirs = names[layer] if layer in names else names.get(pattern, pattern).format(number)
        for end in ("weight", "bias"):
            if f"{at.module}.{end}" in state:
                found[f"{theirs}.{end}"] = state[f"{at.module}.{end}"][at.start : at.start + at.rows]
    for key, value in state.items():
        for pattern, name in OTHERS[kind].items():
            if re.fullmatch(pattern, key):
                found[re.sub(pattern, name, key)] = value
    for theirs, own in TURNED.get(kind, {}).items():  # diffusers has the scale first
        for end in ("weight", "bias") if f"{theirs}.bias" in state else ("weight",):
            found[f"{own}.{end}"] = torch.cat(state[f"{theirs}.{end}"].chunk(2)[::-1])
    return state | found


def backbone_of(kind: str, family: Family, host: dict[str, torch.Tensor]) -> DiffusersTransformer:
    unet = MODELS[kind]()
    state = in_names_of_diffusers(kind, family, {key[6:]: value for key, value in host.items() if key.startswith("model.")})
    unet.load_state_dict({key: state[key].view_as(value) for key, value in unet.state_dict().items()})
    if kind == "Flux2":  # random weights feel that diffusers' norms of queries and keys add 1e-6, and the host's as little as PyTorch does
        for norm in unet.modules():
            if isinstance(norm, nn.RMSNorm):
                norm.eps = None
    unet.register_to_config(_class_name=type(unet).__name__)
    return DiffusersTransformer(Path(), unet, nn.Identity(), float(host["shift"]), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("kind", MODELS)
def test_the_latents_of_regions_on_a_transformer_agree(results, inside, kind):
    assert not results["the_host_paints_transformers_in_regions_for_a_comparison"]
    file = inside / f"joint_{kind}.safetensors"
    if not file.exists():
        pytest.skip(f"this ComfyUI has no {kind}")
    host, family = load_file(file), family_of(FAMILIES[kind])
    host |= {key: value[:, :, 0] for key, value in host.items() if value.ndim == 5}  # a film of one frame
    backbone = backbone_of(kind, family, host)
    factors = {key[3:]: LowRank(up, host[f"down.{key[3:]}"]) for key, up in host.items() if key.startswith("up.")}
    rex = Concept(name="rex", class_word="dog", architecture=backbone.architecture, factors=factors)
    pooled = host["pooled"] if kind in ("Flux", "SD3") else None
    layers = (0,) * len(backbone.cross_attention)
    regions = tuple(ConceptText.of(host[name], [RowPlan()]) for name in ("first", "second"))
    text = Text(host["whole"][:, None], layers, pooled, (RowPlan(regions=regions),)).expand(2)
    unwanted = Text(host["negative"][:, None], layers, pooled).expand(2)
    weights = torch.tensor([0.2, 1.0, -0.5])[None, :, None, None].expand(1, -1, len(layers), 1)
    for name, how in SCENES.items():
        stack = ConceptStack([rex], weights, negative=how.get("negative", True))
        run = begin_joint(backbone, Scene(stacks=(stack,), masks=MASKS, **how))
        weigh = run.guidance if "guidance" in how else None
        found = sample(backbone, text, unwanted, host["noise"], steps=4, guidance=1.5, predict=predict_joint(backbone, run), weigh=weigh)
        wanted = host[f"painted {name}"]
        difference = float((found - wanted).abs().max() / wanted.abs().max())
        print(f"{kind}, {name}: largest difference {difference:.2e} of the largest value")
        assert difference < 1e-4
