"""The transformers of diffusers that a bank knows: what peft writes of their small models comes into it, and a bank's file back."""

import pytest
import torch
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    Lumina2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders import (
    Flux2LoraLoaderMixin,
    FluxLoraLoaderMixin,
    Krea2LoraLoaderMixin,
    Lumina2LoraLoaderMixin,
    QwenImageLoraLoaderMixin,
    SD3LoraLoaderMixin,
    ZImageLoraLoaderMixin,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.exchange import import_into
from cidm_ops.models.registry import family_of

FLUX = dict(
    patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=12, num_attention_heads=2, joint_attention_dim=8,
    axes_dims_rope=(4, 4, 4),
)  # fmt: skip
APPROXIMATOR = dict(approximator_num_channels=8, approximator_hidden_dim=8, approximator_layers=1)
LUMINA = dict(
    sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1,
    multiple_of=8, ffn_dim_multiplier=None, axes_dim_rope=(4, 2, 2), axes_lens=(4, 4, 4), cap_feat_dim=8,
)  # fmt: skip
Z_IMAGE = dict(
    in_channels=4, dim=24, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8, axes_dims=[4, 4, 4],
    axes_lens=[4, 4, 4],
)  # fmt: skip
QWEN = dict(
    in_channels=16, out_channels=4, num_layers=1, attention_head_dim=12, num_attention_heads=2, joint_attention_dim=8,
    axes_dims_rope=(4, 4, 4),
)  # fmt: skip
SD3 = dict(
    sample_size=4, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=12, num_attention_heads=2, joint_attention_dim=8,
    caption_projection_dim=24, pooled_projection_dim=8, pos_embed_max_size=4, dual_attention_layers=(0,), qk_norm="rms_norm",
)  # fmt: skip
KREA2 = dict(
    in_channels=16, num_layers=1, attention_head_dim=12, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
    text_hidden_dim=8, num_text_layers=2, text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=16,
    num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 4, 4),
)  # fmt: skip
MODELS = {
    "flux1-1+1x24": (lambda: FluxTransformer2DModel(**FLUX, pooled_projection_dim=8, guidance_embeds=True), FluxLoraLoaderMixin),
    "chroma-1+1x24": (lambda: ChromaTransformer2DModel(**FLUX, **APPROXIMATOR), FluxLoraLoaderMixin),
    "lumina2-1x24": (lambda: Lumina2Transformer2DModel(**LUMINA), Lumina2LoraLoaderMixin),
    "zimage-1x24": (lambda: ZImageTransformer2DModel(**Z_IMAGE), ZImageLoraLoaderMixin),
    "qwenimage-1x24": (lambda: QwenImageTransformer2DModel(**QWEN), QwenImageLoraLoaderMixin),
    "flux2-1+1x32": (
        lambda: Flux2Transformer2DModel(
            in_channels=8,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        Flux2LoraLoaderMixin,
    ),
    "sd3-2x24": (lambda: SD3Transformer2DModel(**SD3), SD3LoraLoaderMixin),
    "krea2-1x24": (lambda: Krea2Transformer2DModel(**KREA2), Krea2LoraLoaderMixin),
}


def changes_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """What peft changes of each layer's weight, by the layer's name."""
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    return {name: layer.get_delta_weight(layer.active_adapters[0]).detach() for name, layer in layers.items()}


@pytest.mark.parametrize("architecture", MODELS)
def test_a_file_of_diffusers_comes_into_a_bank_and_back(architecture, tmp_path):
    torch.manual_seed(0)
    make, loader = MODELS[architecture]
    family, model = family_of(architecture), make()
    linears = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and not family.is_turned(name, architecture)]
    known = [name for name in linears if family.files.read_layer(name.replace(".", "_")) == name]
    blocks = [name for name in linears if "blocks." in name or "layers." in name or "refiner." in name]
    assert {*blocks} - {"distilled_guidance_layer"} <= {*known} | {n for n in linears if n.startswith("distilled_guidance_layer")}
    model.add_adapter(LoraConfig(r=3, lora_alpha=5, alpha_pattern={known[0]: 2}, init_lora_weights=False, target_modules=known))
    expected = changes_of(model)
    assert {*expected} == {*known}
    settings = model.peft_config["default"].to_dict()
    loader.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(model), transformer_lora_adapter_metadata=settings)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    bank, (rex,), said = import_into(Bank(tmp_path / "bank"), file, name="rex", architecture=architecture)
    assert {*rex.factors} == {*known} and not [s for s in said if "left out" in s]
    for name, delta in expected.items():
        torch.testing.assert_close(rex.factors[name].delta(), delta, atol=1e-6, rtol=1e-6)
    again = make()
    state = loader.lora_state_dict(str(bank.folder), weight_name=bank.file("rex").name)
    again.load_lora_adapter(state, prefix="transformer")
    found = changes_of(again)
    assert {*found} == {*known}
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, atol=1e-6, rtol=1e-6)
