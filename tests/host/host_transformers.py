"""Small random transformers of the host's own classes and their text encoders, for the checks inside a ComfyUI."""

from functools import cache
from types import SimpleNamespace
from typing import Any

# isort: split

import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.text_encoders.flux
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import torch

NEWEST = hasattr(comfy.supported_models, "ZImage")
HEADS, WIDTH, TEXT, POOLED = 2, 64, 48, 32
FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": POOLED,
    "context_in_dim": TEXT,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": HEADS,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
} | ({"txt_ids_dims": []} if NEWEST else {})
CHROMA = {key: value for key, value in FLUX.items() if key not in ("vec_in_dim", "guidance_embed")} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": WIDTH,
    "hidden_dim": 32,
    "n_layers": 1,
    **({"vec_in_dim": None} if NEWEST else {}),
}
FLUX2 = FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "mlp_ratio": 3.0,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "guidance_embed": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
LUMINA: dict[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": WIDTH,
    "cap_feat_dim": TEXT,
    "n_layers": 2,
    "qk_norm": True,
    "n_heads": 4,
    "n_kv_heads": 2,
    "axes_dims": [4, 6, 6],
    "axes_lens": [300, 512, 512],
    "ffn_dim_multiplier": 4.0,
} | ({"rope_theta": 10000.0} if NEWEST else {})
Z_IMAGE = LUMINA | {
    "dim": 256,  # its modulation reads as many features of the time, whatever the width
    "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "axes_dims": [32, 48, 48],
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
QWEN: dict[str, Any] = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "attention_head_dim": WIDTH // HEADS,
    "num_attention_heads": HEADS,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (8, 12, 12),
}
SD3: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "input_size": None,
    "depth": 2,  # its width is 64 times that
    "adm_in_channels": POOLED,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": TEXT, "out_features": 128}},
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
    "x_block_self_attn_layers": [0],
}
# As wide as the text that its encoders make, however small they are.
WIDE_SD3 = SD3 | {
    "adm_in_channels": 2 * POOLED,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
}
ANIMA: dict[str, Any] = {
    "image_model": "anima",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": WIDTH,
    "crossattn_emb_channels": TEXT,
    "pos_emb_cls": "rope3d",
    "num_blocks": 2,
    "num_heads": HEADS,
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "rope_enable_fps_modulation": False,
}
KREA2: dict[str, Any] = {
    "image_model": "krea2",
    "features": WIDTH,
    "heads": HEADS,
    "kvheads": 1,
    "layers": 2,
    "channels": 16,
    "patch": 2,
    "txtlayers": 2,
    "txtdim": TEXT // 2,
    "txtheads": 2,
    "txtkvheads": 2,
}
CONFIGS = {"Flux": FLUX, "Chroma": CHROMA, "Lumina2": LUMINA, "QwenImage": QWEN, "SD3": SD3}
CONFIGS |= {"ZImage": Z_IMAGE, "Flux2": FLUX2, "Anima": ANIMA, "Krea2": KREA2} if NEWEST else {}
FILMS = ("QwenImage", "Anima", "Krea2")  # whose latents have an axis of frames
ARCHITECTURES = {
    "Flux": "flux1-2+2x64",
    "Chroma": "chroma-2+2x64",
    "Lumina2": "lumina2-2x64",
    "ZImage": "zimage-2x256",
    "QwenImage": "qwenimage-2x64",
    "SD3": "sd3-2x128",
    "Flux2": "flux2-2+2x64",
    "Anima": "anima-2x64",
    "Krea2": "krea2-2x64",
}


@cache
def model_of(kind: str) -> comfy.model_patcher.ModelPatcher:
    """A model of the host's own class, built past its detection, with random weights in fp32."""
    return built(kind, CONFIGS[kind])


def built(kind: str, settings: dict[str, Any]) -> comfy.model_patcher.ModelPatcher:
    """A model of a configuration."""
    config = getattr(comfy.supported_models, kind)(dict(settings))
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device=torch.device("cpu"))
    if kind == "Anima" and settings["model_channels"] == WIDTH:  # whose adapter has one size
        base.diffusion_model.llm_adapter = small_adapter()
    randomise(base.diffusion_model)
    base.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(base, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def small_adapter() -> torch.nn.Module:
    """The adapter of Anima's texts, small but for its words."""
    from comfy.ldm.anima.model import LLMAdapter

    made = {"device": torch.device("cpu"), "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    return LLMAdapter(source_dim=TEXT, target_dim=TEXT, model_dim=TEXT, num_layers=1, num_heads=3, **made)


def randomise(module: torch.nn.Module) -> None:
    """Weights of the size that layers are trained to; the host leaves its own uninitialised."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        normed = "norm" in name or ".ln_" in name
        parameter.data.copy_(1 + 0.1 * value if normed and value.ndim == 1 else 0.5 * value / value.numel() ** 0.25)
    if isinstance(places := getattr(module, "pos_embed", None), torch.Tensor):
        places.normal_(0, 0.5, generator=generator)


def clip_of(encoder: Any, tokenizer: Any, **configs: dict[str, Any]) -> comfy.sd.CLIP:
    """Text encoders of the host in sizes of their own, by the name of each; their weights are as the host leaves them."""
    target = SimpleNamespace(params={}, clip=encoder, tokenizer=tokenizer)
    sizes = {f"{name}_model_config": config for name, config in configs.items()}
    return comfy.sd.CLIP(target, model_options={"dtype": torch.float32, **sizes})


@cache
def flux_clip() -> comfy.sd.CLIP:
    """The text encoders of Flux.1, small."""
    host = comfy.text_encoders.flux
    small = {"hidden_size": POOLED, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    t5 = {"d_model": TEXT, "d_ff": 64, "d_kv": 16, "num_heads": 3, "num_layers": 2}
    clip = clip_of(host.flux_clip(dtype_t5=torch.float32), host.FluxTokenizer, clip_l=small, t5xxl=t5)
    randomise(clip.cond_stage_model)
    return clip


@cache
def qwen_clip() -> comfy.sd.CLIP:
    """The text encoder of Qwen-Image, small but for its words; what it would see pictures with is left as it is."""
    host = comfy.text_encoders.qwen_image
    small = {"hidden_size": TEXT, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
    clip = clip_of(host.te(), host.QwenImageTokenizer, qwen25_7b=small)
    randomise(clip.cond_stage_model.qwen25_7b.transformer.model)
    return clip


@cache
def sd3_clip() -> comfy.sd.CLIP:
    """The text encoders of Stable Diffusion 3.5, small but for the width of T5's states, to which the host fills up those of the CLIPs."""
    host = comfy.text_encoders.sd3_clip
    small = {"hidden_size": POOLED, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    t5 = {"d_model": 4096, "d_ff": 64, "d_kv": 16, "num_heads": 3, "num_layers": 1}
    clip = clip_of(host.sd3_clip(dtype_t5=torch.float32), host.SD3Tokenizer, clip_l=small, clip_g=small, t5xxl=t5)
    for part in (clip.cond_stage_model.clip_l, clip.cond_stage_model.clip_g, clip.cond_stage_model.t5xxl.transformer.encoder):
        randomise(part)
    clip.cond_stage_model.t5xxl.transformer.shared.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    return clip


@cache
def anima_clip() -> comfy.sd.CLIP:
    """The text encoder of Anima, small but for its words."""
    import comfy.text_encoders.anima as host

    small = {"hidden_size": TEXT, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    clip = clip_of(host.te(), host.AnimaTokenizer, qwen3_06b=small)
    randomise(clip.cond_stage_model)
    return clip
