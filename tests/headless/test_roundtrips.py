"""LoRA files made by peft's and diffusers' own code come in with the deltas those apply, and ours go out and back."""

import warnings

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file
from test_diffusers_lora import pipeline

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.concept_file import lora_key
from cidm_ops.bank.exchange import import_file
from cidm_ops.bank.export import export_concept
from cidm_ops.bank.names import canonical, kernel_of
from cidm_ops.causal import linear_layers
from cidm_ops.engines.diffusers import load
from cidm_ops.engines.families import SD1, SDXL, new_text_encoder
from cidm_ops.lowrank import LowRank

peft = pytest.importorskip("peft", reason="diffusers loads LoRAs through peft")

LAYERS = (
    "to_[qkv] to_out.0 ff.net.0.proj ff.net.2 proj_in proj_out conv1 conv2 conv_shortcut time_emb_proj conv conv_in conv_out linear_[12]"
)
UNET = f".*({'|'.join(LAYERS.split())})"
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
CLOSE = dict(atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family, architecture", [(SD1, "sd1-16x768"), (SDXL, "sdxl-70x2048")], ids=lambda x: getattr(x, "name", ""))
def test_every_layer_of_the_full_models_has_its_name_and_kernel(family, architecture):
    with torch.device("meta"):
        unet, texts = UNet2DConditionModel(**family.unet), {e: new_text_encoder(e, c) for e, c in family.texts.items()}
    layers = {n: m for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    for name, module in (layers | linear_layers(texts)).items():
        assert canonical(lora_key(name, architecture)) == name
        assert kernel_of(name, architecture.split("-")[0]) == getattr(module, "kernel_size", ())
    assert all(canonical(name) == canonical(f"unet.{name}") == name for name in layers)


def config(targets, **more):
    """Random factors: by default one side is zero."""
    return peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **more)


def deltas(backbone, adapter="default"):
    """What a backbone's adapters add to each weight, by our names."""
    layers = {**dict(backbone.unet.named_modules()), **linear_layers(backbone.texts)}
    return {name: m.get_delta_weight(adapter).detach() for name, m in layers.items() if hasattr(m, "get_delta_weight")}


def assert_same(concept: Concept, expected: dict[str, torch.Tensor]) -> None:
    assert set(concept.all_factors) == set(expected)
    for name, whole in expected.items():
        f = concept.all_factors[name]
        torch.testing.assert_close(f.delta(), whole.flatten(1), **CLOSE, msg=lambda said, name=name: f"{name}: {said}")
        assert f.kernel == tuple(whole.shape[2:])


@pytest.mark.parametrize("how", [dict(lora_alpha=4), dict(lora_alpha=9), dict(lora_alpha=9, use_rslora=True)], ids=str)
def test_what_peft_saves(how, tiny_sd1, tmp_path):
    backbone = load(tiny_sd1)
    torch.manual_seed(1)
    model = peft.get_peft_model(backbone.unet, config(UNET, **how))
    model.save_pretrained(tmp_path)
    expected = deltas(backbone)
    (concept,), said = import_file(tmp_path / "adapter_model.safetensors", architecture=backbone.architecture, triggers=["x"])
    assert not said and len(expected) > 60
    assert_same(concept, expected)


def saved_by_diffusers(base, kind, folder, alpha=4, text_names=convert_state_dict_to_diffusers):
    """A backbone with random adapters in all its models, and the file that diffusers' pipeline saves of them."""
    backbone = load(base)
    torch.manual_seed(2)
    models = {"unet": backbone.unet} | {f"text_encoder{'_2' if e == 'clip_g' else ''}": model for e, model in backbone.texts.items()}
    for name, model in models.items():
        model.add_adapter(config(UNET if name == "unet" else TEXT, lora_alpha=alpha))
    states = {f"{name}_lora_layers": peft.get_peft_model_state_dict(model) for name, model in models.items()}
    states = {name: text_names(state) if "text" in name else state for name, state in states.items()}
    settings = {f"{name}_lora_adapter_metadata": model.peft_config["default"].to_dict() for name, model in models.items()}
    kind.save_lora_weights(folder, **states, **(settings if alpha != 4 else {}))
    return backbone, folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("alpha", [4, 6])
@pytest.mark.parametrize("base, kind", [("tiny_sd1", StableDiffusionPipeline), ("tiny_sdxl", StableDiffusionXLPipeline)])
def test_what_diffusers_saves(base, kind, alpha, request, tmp_path):
    backbone, file = saved_by_diffusers(request.getfixturevalue(base), kind, tmp_path, alpha)
    (concept,), said = import_file(file, architecture=backbone.architecture, triggers=["x"])
    expected = deltas(backbone)
    assert not said and {name.split(".")[0] for name in expected} > set(backbone.texts)
    assert_same(concept, expected)


@pytest.mark.parametrize("base, kind", [("tiny_sd1", StableDiffusionPipeline), ("tiny_sdxl", StableDiffusionXLPipeline)])
def test_what_diffusers_makes_of_it_under_kohyas_names(base, kind, request, tmp_path):
    backbone, file = saved_by_diffusers(request.getfixturevalue(base), kind, tmp_path, text_names=dict)
    save_file(convert_state_dict_to_kohya(load_file(file)), tmp_path / "x.safetensors")
    (concept,), said = import_file(tmp_path / "x.safetensors", architecture=backbone.architecture, triggers=["x"])
    assert not said
    assert_same(concept, deltas(backbone))


@pytest.mark.parametrize("base, kind", [("tiny_sd1", StableDiffusionPipeline), ("tiny_sdxl", StableDiffusionXLPipeline)])
def test_an_export_goes_into_diffusers_and_back(base, kind, request, tmp_path):
    backbone = load(request.getfixturevalue(base))
    torch.manual_seed(4)
    layers = {**dict(backbone.unet.named_modules()), **linear_layers(backbone.texts)}
    wanted = [name for name in [*backbone.layers, *linear_layers(backbone.texts)] if "add_embedding" not in name]  # diffusers knows not
    factors = {}
    for name in wanted:
        out, *rest = layers[name].weight.shape
        inner = torch.Size(rest).numel()
        factors[name] = LowRank(torch.randn(out, 3), torch.randn(3, inner), tuple(rest[1:]))
    texts = {name: f for name, f in factors.items() if name.startswith("clip_")}
    unet = {name: f for name, f in factors.items() if name not in texts}
    concept = Concept(name="rex", class_word="dog", factors=unet, architecture=backbone.architecture, text_factors=texts)
    (file,) = export_concept(Bank(tmp_path / "bank").add(concept).get("rex"), tmp_path)
    pipe = pipeline(backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="rex")
    inside = deltas(backbone, "rex")
    assert_same(concept, inside)
    states = {
        f"{part}_lora_layers": peft.get_peft_model_state_dict(getattr(pipe, part), adapter_name="rex")
        for part in ("unet", "text_encoder", "text_encoder_2")
        if getattr(pipe, part, None) is not None
    }
    kind.save_lora_weights(tmp_path / "back", **states)
    (back,), said = import_file(tmp_path / "back" / "pytorch_lora_weights.safetensors", architecture=backbone.architecture, triggers=["x"])
    assert not said
    assert_same(back, inside)
