"""A concept file is an ordinary LoRA to diffusers: every factor arrives at its layer, at full scale."""

import warnings

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from cidm_ops.bank.bank import Bank
from cidm_ops.causal import attention_layers
from cidm_ops.engines.diffusers import load
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.methods import configure
from cidm_ops.training.task import Task, learn_into

pytest.importorskip("peft", reason="diffusers loads LoRAs through peft")


def pipeline(backbone):
    """The backbone's modules as diffusers' own pipeline."""
    parts = dict(
        vae=backbone.vae,
        unet=backbone.unet,
        scheduler=DDPMScheduler(clip_sample=False, steps_offset=1),
        tokenizer=None,
        text_encoder=backbone.texts["clip_l"],
    )
    if "clip_g" in backbone.texts:
        return StableDiffusionXLPipeline(**parts, text_encoder_2=backbone.texts["clip_g"], tokenizer_2=None, add_watermarker=False)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@pytest.mark.parametrize("base", ["tiny_sd1", "tiny_sdxl"])
def test_diffusers_loads_a_concept(base, request, tmp_path):
    backbone = load(request.getfixturevalue(base))
    data = Dataset([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))], ["a dog"])
    config = configure("cidm", steps=3, lr=1e-2, lr_tokens=1e-2, lr_text=1e-2, targets="attention_ff", norm_stop=10, alpha=8)
    bank, concept, *_ = learn_into(Bank(tmp_path), backbone, data, Task(name="rex", class_word="dog", config=config))
    fresh = load(request.getfixturevalue(base))
    pipe = pipeline(fresh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.load_lora_weights(str(tmp_path), weight_name=bank.file("rex").name, adapter_name="rex")
    layers = {**dict(fresh.unet.named_modules()), **attention_layers(fresh.texts)}
    factors = {**concept.factors, **concept.text_factors}
    for name, f in factors.items():
        torch.testing.assert_close(layers[name].get_delta_weight("rex"), f.delta(), atol=1e-6, rtol=1e-5)
    given = sum(hasattr(layer, "get_delta_weight") for model in (fresh.unet, *fresh.texts.values()) for layer in model.modules())
    assert given == len(factors)
