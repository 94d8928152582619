"""Transformers of real width and few blocks, of random weights, built past the detection of a ComfyUI: what a step costs beside another
does not depend on the depth.

Imported by the scripts ``host_joint*.py`` inside the host, after ``in_host.py``.
"""

from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from ...concept_text import ConceptText
from ...row_plan import RowPlan

NEWEST = hasattr(comfy.supported_models, "ZImage")
FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
} | ({"txt_ids_dims": []} if NEWEST else {})
LUMINA: dict[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 2304,
    "cap_feat_dim": 2304,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "n_heads": 24,
    "n_kv_heads": 8,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "ffn_dim_multiplier": 4.0,
} | ({"rope_theta": 10000.0} if NEWEST else {})
Z_IMAGE = LUMINA | {
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "ffn_dim_multiplier": 8.0 / 3.0,
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
QWEN: dict[str, Any] = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2}  # the rest is as wide as the host has it
MODELS = {
    "flux": ("Flux", FLUX),
    "nextdit": ("ZImage", Z_IMAGE) if NEWEST else ("Lumina2", LUMINA),
    "qwen": ("QwenImage", QWEN),
}
WIDTHS = {"flux": FLUX["context_in_dim"], "nextdit": MODELS["nextdit"][1]["cap_feat_dim"], "qwen": 3584}  # of the texts


def build(family: str) -> comfy.model_patcher.ModelPatcher:
    """The model, built past the host's detection."""
    kind, own = MODELS[family]
    device = comfy.model_management.get_torch_device()
    config = getattr(comfy.supported_models, kind)(dict(own))
    config.set_inference_dtype(torch.float32 if device.type == "cpu" else torch.bfloat16, None)
    base = config.get_model({}, "", device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in base.diffusion_model.parameters():
        parameter.data.normal_(0, 0.02, generator=generator)
    base.eval().requires_grad_(False)
    patcher = comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=device)
    patcher.cached_patcher_init = (lambda disable_dynamic=False: build(family), ())  # the host's trainer asks for another one
    return patcher


def random_latents(family: str, count: int, pixels: int) -> torch.Tensor:
    """Latents of square pictures as the host has them: those of Qwen-Image are films of one frame."""
    return torch.randn(count, 16, *([1] if family == "qwen" else []), pixels // 8, pixels // 8)


def text(family: str, length: int, *regions: torch.Tensor) -> list:
    """A CONDITIONING of random states."""
    states = torch.randn(1, length, WIDTHS[family], generator=torch.Generator().manual_seed(length))
    more: dict[str, torch.Tensor] = {}
    if family == "flux":
        more["pooled_output"] = torch.zeros(1, 768)
    elif family == "nextdit":
        more["attention_mask"] = torch.ones(1, length, dtype=torch.long)
    if regions:
        states = ConceptText.of(states, [RowPlan(regions=tuple(ConceptText.of(region, [RowPlan()]) for region in regions))])
    return [[states, more]]
