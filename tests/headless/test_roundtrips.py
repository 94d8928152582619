"""LoRA files made by peft's and diffusers' own code come in with the deltas those apply, and ours go out and back."""

import re
import warnings

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file
from test_diffusers_lora import BASES, PARTS, pipeline, read_by_diffusers

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.exchange import import_file
from cidm_ops.bank.export import export_concept
from cidm_ops.bank.names import canonical
from cidm_ops.causal import linear_layers
from cidm_ops.engines.checkpoint import new_text_encoder
from cidm_ops.engines.diffusers import load
from cidm_ops.lowrank import LowRank
from cidm_ops.models.sd import SD1, SDXL

LAYERS = (
    "to_[qkv] to_out.0 ff.net.0.proj ff.net.2 proj_in proj_out conv1 conv2 conv_shortcut time_emb_proj conv conv_in conv_out linear_[12]"
)
UNET = f".*({'|'.join(LAYERS.split())})"
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
CLOSE = dict(atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", [SD1, SDXL], ids=lambda f: f.name)
def test_every_layer_of_the_full_models_has_its_name_and_kernel(family):
    own = family.diffusers
    with torch.device("meta"):
        unet, texts = UNet2DConditionModel(**own.model), {e.name: new_text_encoder(e, own.texts[e.name]) for e in family.encoders}
    layers = {n: m for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    for name, module in (layers | linear_layers(texts)).items():
        assert canonical(family.file_key(name), family) == name
        assert family.kernel_of(name) == getattr(module, "kernel_size", ())
    assert all(canonical(name, family) == canonical(f"unet.{name}", family) == name for name in layers)


def config(targets, **more):
    """Random factors: by default one side is zero."""
    peft = pytest.importorskip("peft", reason="diffusers loads LoRAs through peft")
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
    peft = pytest.importorskip("peft", reason="peft writes the file")
    backbone = load(tiny_sd1)
    torch.manual_seed(1)
    model = peft.get_peft_model(backbone.unet, config(UNET, **how))
    model.save_pretrained(tmp_path)
    expected = deltas(backbone)
    (concept,), said = import_file(tmp_path / "adapter_model.safetensors", architecture=backbone.architecture, triggers=["x"])
    assert not said and len(expected) > 60
    assert_same(concept, expected)


def models_of(backbone):
    """The models of a backbone by diffusers' names of a pipeline's parts."""
    return {"unet": backbone.unet} | {f"text_encoder{'_2' if e == 'clip_g' else ''}": model for e, model in backbone.texts.items()}


def adapted_by_peft(backbone, alpha):
    """Random adapters in all models: their states, their settings, and what they add to each weight by our names."""
    import peft

    models = models_of(backbone)
    for part, model in models.items():
        model.add_adapter(config(UNET if part == "unet" else TEXT, lora_alpha=alpha))
    states = {part: peft.get_peft_model_state_dict(model) for part, model in models.items()}
    return states, {part: model.peft_config["default"].to_dict() for part, model in models.items()}, deltas(backbone)


def adapted_by_hand(backbone, alpha):
    """The same layout without peft, whose integration another library may refuse: random factors of every layer that it would adapt."""
    states, expected = {}, {}
    for part, model in models_of(backbone).items():
        state = states[part] = {}
        for name, layer in model.named_modules():
            wanted = re.fullmatch(UNET, name) if part == "unet" else name.rpartition(".")[2] in TEXT
            if not wanted or not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                continue
            out, inner, *kernel = layer.weight.shape
            down = state[f"{name}.lora_A.weight"] = torch.randn(4, inner, *kernel)
            up = state[f"{name}.lora_B.weight"] = torch.randn(out, 4, *[1] * len(kernel))
            ours = PARTS[part] + name.removeprefix("text_model.")
            expected[ours] = alpha / 4 * (up.flatten(1) @ down.flatten(1)).view(layer.weight.shape)
    settings = {part: {"peft_type": "LORA", "r": 4, "lora_alpha": alpha, "use_rslora": False, "use_dora": False} for part in states}
    return states, settings, expected


HOWS = pytest.mark.parametrize("how", [adapted_by_hand, adapted_by_peft], ids=lambda how: how.__name__)


def saved_by_diffusers(base, kind, how, request, folder, alpha=4, text_names=convert_state_dict_to_diffusers):
    """A backbone with random adapters in all its models, the file that diffusers' pipeline saves of them, and what they add."""
    if how is adapted_by_peft:
        request.getfixturevalue("adapters")  # skips where diffusers or transformers refuses this peft
    backbone = load(request.getfixturevalue(base))
    torch.manual_seed(2)
    states, settings, expected = how(backbone, alpha)
    layers = {f"{part}_lora_layers": text_names(state) if "text" in part else state for part, state in states.items()}
    told = {f"{part}_lora_adapter_metadata": own for part, own in settings.items()} if alpha != 4 else {}
    kind.save_lora_weights(folder, **layers, **told)
    return backbone, folder / "pytorch_lora_weights.safetensors", expected


@pytest.mark.parametrize("base", ["tiny_sd1", "tiny_sdxl"])
def test_the_layout_by_hand_is_that_of_peft(base, adapters, request):
    by_peft, _, added = adapted_by_peft(load(request.getfixturevalue(base)), 6)
    by_hand, _, expected = adapted_by_hand(load(request.getfixturevalue(base)), 6)
    shapes = [
        {part: {key: tensor.shape for key, tensor in state.items()} for part, state in states.items()} for states in (by_peft, by_hand)
    ]
    assert shapes[0] == shapes[1]
    assert {name: delta.shape for name, delta in added.items()} == {name: delta.shape for name, delta in expected.items()}


@HOWS
@pytest.mark.parametrize("alpha", [4, 6])
@BASES
def test_what_diffusers_saves(base, kind, alpha, how, request, tmp_path):
    backbone, file, expected = saved_by_diffusers(base, kind, how, request, tmp_path, alpha)
    (concept,), said = import_file(file, architecture=backbone.architecture, triggers=["x"])
    assert not said and {name.split(".")[0] for name in expected} > set(backbone.texts)
    assert_same(concept, expected)


@HOWS
@BASES
def test_what_diffusers_makes_of_it_under_kohyas_names(base, kind, how, request, tmp_path):
    backbone, file, expected = saved_by_diffusers(base, kind, how, request, tmp_path, text_names=dict)
    save_file(convert_state_dict_to_kohya(load_file(file)), tmp_path / "x.safetensors")
    (concept,), said = import_file(tmp_path / "x.safetensors", architecture=backbone.architecture, triggers=["x"])
    assert not said
    assert_same(concept, expected)


def with_every_layer(backbone):
    """A concept with random factors for every layer that diffusers knows a LoRA of."""
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
    return Concept(name="rex", class_word="dog", factors=unet, architecture=backbone.architecture, text_factors=texts)


@BASES
def test_diffusers_reads_every_layer_of_an_export(base, kind, request, tmp_path):
    backbone = load(request.getfixturevalue(base))
    concept = with_every_layer(backbone)
    (file,) = export_concept(Bank(tmp_path / "bank").add(concept).get("rex"), tmp_path)
    found = read_by_diffusers(kind, file, backbone)
    assert set(found) == set(concept.all_factors)
    for name, f in concept.all_factors.items():
        torch.testing.assert_close(found[name], f.delta(), **CLOSE)


@BASES
def test_an_export_goes_into_diffusers_and_back(base, kind, adapters, request, tmp_path):
    import peft

    backbone = load(request.getfixturevalue(base))
    concept = with_every_layer(backbone)
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
