"""A concept file is an ordinary LoRA to diffusers: every factor arrives at its layer, at full scale."""

import warnings

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

from cidm_ops.bank.bank import Bank
from cidm_ops.causal import attention_layers
from cidm_ops.engines.diffusers import load
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.method import Task
from cidm_ops.training.methods import configure
from cidm_ops.training.task import learn_into

BASES = pytest.mark.parametrize("base, kind", [("tiny_sd1", StableDiffusionPipeline), ("tiny_sdxl", StableDiffusionXLPipeline)])
PARTS = {"unet": "", "text_encoder": "clip_l.", "text_encoder_2": "clip_g."}


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


def read_by_diffusers(kind, file, backbone):
    """What diffusers reads in a file, before peft puts it into the layers: the change of each layer's weight, by our names."""
    state, alphas = kind.lora_state_dict(str(file.parent), weight_name=file.name, unet_config=backbone.unet.config)
    found, ranks = {}, set()
    for part, encoder in PARTS.items():
        own = {key.removeprefix(f"{part}."): tensor for key, tensor in state.items() if key.startswith(f"{part}.")}
        if not own:
            continue
        named = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own)) if encoder else convert_unet_state_dict_to_peft(own)
        for key, down in named.items():
            layer, _, side = key.partition(".lora_")
            if side.startswith("A"):
                up = named[f"{layer}.lora_B.weight"]
                found[encoder + layer.removeprefix("text_model.")] = up.flatten(1) @ down.flatten(1)
                ranks.add(down.shape[0])
    assert set(alphas.values()) == ranks  # alpha / rank is what diffusers multiplies with
    return found


def learned(base, folder):
    """A concept learned on a tiny base, with changes of every kind, and its file."""
    backbone = load(base)
    data = Dataset([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))], ["a dog"])
    config = configure("cidm", steps=3, lr=1e-2, lr_tokens=1e-2, lr_text=1e-2, targets="attention_ff", norm_stop=10, alpha=8)
    bank, concept, *_ = learn_into(Bank(folder), backbone, data, Task(name="rex", class_word="dog", config=config))
    return concept, bank.file("rex")


@BASES
def test_diffusers_reads_every_factor_of_a_concept_for_its_layer(base, kind, request, tmp_path):
    folder = request.getfixturevalue(base)
    concept, file = learned(folder, tmp_path)
    found = read_by_diffusers(kind, file, load(folder))
    assert set(found) == set(concept.all_factors)
    for name, f in concept.all_factors.items():
        torch.testing.assert_close(found[name], f.delta(), atol=1e-6, rtol=1e-5)


@BASES
def test_diffusers_loads_a_concept(base, kind, adapters, request, tmp_path):
    concept, file = learned(request.getfixturevalue(base), tmp_path)
    fresh = load(request.getfixturevalue(base))
    pipe = pipeline(fresh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="rex")
    layers = {**dict(fresh.unet.named_modules()), **attention_layers(fresh.texts)}
    for name, f in concept.all_factors.items():
        torch.testing.assert_close(layers[name].get_delta_weight("rex"), f.delta(), atol=1e-6, rtol=1e-5)
    given = sum(hasattr(layer, "get_delta_weight") for model in (fresh.unet, *fresh.texts.values()) for layer in model.modules())
    assert given == len(concept.all_factors)
