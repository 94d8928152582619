"""LoRAs of others become factors: every naming gives the same deltas, every way of scaling its own, and nothing is lost silently."""

import json
import math
import random

import pytest
import torch
from safetensors.torch import save, save_file

from cidm_ops.bank.community import read_lora
from cidm_ops.bank.exchange import import_file
from cidm_ops.bank.names import canonical
from cidm_ops.models import sd
from cidm_ops.models.registry import families

DOODLE, SD1, SDXL = sd.DOODLE.architecture, sd.SD1.architecture, sd.SDXL.architecture

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
KEY = f"{BLOCK}.attn2.to_k"
# one layer of every kind, of Stable Diffusion 1
NAMES = [
    f"{BLOCK}.attn1.to_q",
    f"{BLOCK}.attn1.to_out.0",
    KEY,
    f"{BLOCK}.ff.net.0.proj",
    f"{BLOCK}.ff.net.2",
    "mid_block.attentions.0.proj_in",
    "up_blocks.2.attentions.1.proj_out",
    "down_blocks.0.resnets.1.conv1",
    "mid_block.resnets.1.conv2",
    "up_blocks.0.resnets.2.conv_shortcut",
    "down_blocks.2.resnets.0.time_emb_proj",
    "down_blocks.1.downsamplers.0.conv",
    "up_blocks.0.upsamplers.0.conv",
    "conv_in",
    "conv_out",
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    "clip_l.encoder.layers.3.self_attn.q_proj",
    "clip_l.encoder.layers.3.self_attn.out_proj",
    "clip_l.encoder.layers.3.mlp.fc1",
]


def size(layer, family=sd.SD1):
    """The shape of a layer's weight: (out, in), or (out, in, kh, kw)."""
    (out, flat), kernel = family.shapes[layer], family.kernel_of(layer)
    return (out, flat // math.prod(kernel), *kernel)


LAYERS = {layer: size(layer) for layer in NAMES}
# the same layers in the original layout, two resnets to a block
ORIGINAL = {
    f"{BLOCK}.": "input_blocks.4.1.transformer_blocks.0.",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "up_blocks.2.attentions.1.proj_out": "output_blocks.7.1.proj_out",
    "down_blocks.0.resnets.1.conv1": "input_blocks.2.0.in_layers.2",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "up_blocks.0.resnets.2.conv_shortcut": "output_blocks.2.0.skip_connection",
    "down_blocks.2.resnets.0.time_emb_proj": "input_blocks.7.0.emb_layers.1",
    "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}


def factors(rank=2, layers=LAYERS):
    """Up and down of every layer, of the rank of a file's dimension, as files have them."""
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for layer, (out, *rest) in layers.items():
        kernel = rest[1:]
        up = torch.randn(out, rank, *[1] * len(kernel), generator=generator)
        pairs[layer] = up, torch.randn(rank, *rest, generator=generator)
    return pairs


def delta(up, down):
    return up.flatten(1) @ down.flatten(1)


def text(layer, root="text_encoder"):
    """A text encoder's layer as transformers names it."""
    path = layer.removeprefix("clip_l.")
    return f"{root}.text_model.{path}"


def original(layer):
    return next((layer.replace(ours, theirs) for ours, theirs in ORIGINAL.items() if layer.startswith(ours)), layer)


def kohya(layer, up, down):
    name = f"lora_te_text_model_{layer.removeprefix('clip_l.')}" if layer.startswith("clip_l") else f"lora_unet_{layer}"
    name = name.replace(".", "_")
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(2.0)}


def kohya_original(layer, up, down):
    return kohya(original(layer), up, down)


def core(layer, up, down):
    name = f"text_encoders.clip_l.transformer.text_model.{layer.removeprefix('clip_l.')}"
    name = name if layer.startswith("clip_l") else f"diffusion_model.{original(layer)}"
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(2.0)}


def diffusers(layer, up, down):
    name = text(layer) if layer.startswith("clip_l") else f"unet.{layer}"
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def diffusers_dots(layer, up, down):
    name = f"{text(layer)}.lora_linear_layer" if layer.startswith("clip_l") else f"unet.{layer}.lora"
    return {f"{name}.down.weight": down, f"{name}.up.weight": up}


def diffusers_processors(layer, up, down):
    if ".to_" not in layer:
        name = text(layer).replace("q_proj", "to_q").replace("out_proj", "to_out") if "self_attn" in layer else None
        return {f"{name}_lora.down.weight": down, f"{name}_lora.up.weight": up} if name else diffusers_dots(layer, up, down)
    name = f"unet.{layer.replace('to_out.0', 'to_out').replace('.to_', '.processor.to_')}_lora"
    return {f"{name}.down.weight": down, f"{name}.up.weight": up}


def peft(layer, up, down):
    name = f"text_model.{layer.removeprefix('clip_l.')}" if layer.startswith("clip_l") else layer
    return {f"base_model.model.{name}.lora_A.default.weight": down, f"base_model.model.{name}.lora_B.default.weight": up}


def old_peft(layer, up, down):
    name = text(layer, "text_encoder.base_model.model") if layer.startswith("clip_l") else f"unet.base_model.model.{layer}"
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def lycoris(layer, up, down):
    return {key.replace("lora_unet_", "lycoris_"): tensor for key, tensor in kohya(layer, up, down).items()}


UNSCALED = "no adapter_config.json is beside it, which says how strongly peft's factors act: they are taken as they are"
NAMINGS = (kohya, kohya_original, core, diffusers, diffusers_dots, diffusers_processors, peft, old_peft, lycoris)


@pytest.mark.parametrize("naming", NAMINGS, ids=lambda naming: naming.__name__)
def test_every_naming_gives_the_same_deltas(naming, tmp_path):
    pairs = factors()
    state = {key: tensor for layer, pair in pairs.items() for key, tensor in naming(layer, *pair).items()}
    save_file(state, tmp_path / "x.safetensors")
    (concept,), warnings = import_file(tmp_path / "x.safetensors", triggers=["x"])
    assert warnings == ([UNSCALED] if naming is peft else []) and concept.architecture == SD1 and set(concept.all_factors) == set(LAYERS)
    for layer, pair in pairs.items():
        found = concept.all_factors[layer]
        torch.testing.assert_close(found.delta(), delta(*pair), atol=1e-5, rtol=1e-5)
        assert found.kernel == tuple(LAYERS[layer][2:])


def test_sdxl_is_known_by_its_text_and_its_layers_by_kohyas_names():
    modules = {
        "unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k": "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
        "unet_label_emb_0_2": "add_embedding.linear_2",
        "unet_input_blocks_8_1_proj_in": "down_blocks.2.attentions.1.proj_in",
        "te1_text_model_encoder_layers_0_mlp_fc2": "clip_l.encoder.layers.0.mlp.fc2",
        "te2_text_model_encoder_layers_0_mlp_fc2": "clip_g.encoder.layers.0.mlp.fc2",
    }
    state = {}
    for module, layer in modules.items():
        out, width = size(layer, sd.SDXL)
        state |= {f"lora_{module}.lora_up.weight": torch.randn(out, 2), f"lora_{module}.lora_down.weight": torch.randn(2, width)}
    read = read_lora(state)
    assert read.architecture == SDXL and {*read.factors, *read.text_factors} == {*modules.values()}
    assert {*read.text_factors} == {layer for layer in modules.values() if layer.startswith("clip")}
    assert all(not f.kernel for f in read.factors.values())  # SDXL's projections are linear


def test_doodles_original_layout_has_one_resnet_to_a_block():
    state = kohya("x", torch.randn(128, 2), torch.randn(2, 160))
    state = {key.replace("unet_x", "unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k"): t for key, t in state.items()}
    read = read_lora(state)
    assert read.architecture == DOODLE and set(read.factors) == {f"{BLOCK}.attn2.to_k"}


@pytest.mark.parametrize(
    "alpha, settings, scale",
    [
        (None, {}, 1.0),  # as they are
        (1.0, {}, 1 / 4),  # kohya: alpha / rank
        (None, {"lora_alpha": 8}, 2.0),  # peft: lora_alpha / r
        (None, {"lora_alpha": 8, "use_rslora": True}, 8 / 2),  # rsLoRA: lora_alpha / sqrt(r)
        (None, {"lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 2}}, 1 / 2),
        (1.0, {"lora_alpha": 8}, 1 / 4),  # an alpha in the file goes before
    ],
)
def test_every_way_of_scaling(alpha, settings, scale):
    up, down = torch.randn(640, 4), torch.randn(4, 768)
    state = {f"unet.{KEY}.lora_A.weight": down, f"unet.{KEY}.lora_B.weight": up}
    if alpha is not None:
        state[f"unet.{KEY}.alpha"] = torch.tensor(alpha)
    read = read_lora(state, {"": settings} if settings else {})
    torch.testing.assert_close(read.factors[KEY].delta(), scale * up @ down)


def test_settings_stand_in_the_metadata_or_beside_the_file(tmp_path):
    state = {f"unet.{KEY}.lora_A.weight": torch.ones(2, 768), f"unet.{KEY}.lora_B.weight": torch.ones(640, 2)}
    save_file(state, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 6})})
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    for file in ("a.safetensors", "adapter_model.safetensors"):
        assert import_file(tmp_path / file)[0][0].factors[KEY].delta()[0, 0] == 2 * 3


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def plain(**more):
    return kohya(KEY, randn(640, 2), randn(2, 768)) | {key: t for key, t in more.items()}


def test_what_cannot_be_taken_over_is_counted_and_named():
    read = read_lora(plain(**{"lora_unet_conv_in.diff_b": randn(4), "lora_unet_down_blocks_0_resnets_0_norm1.diff": randn(4)}))
    assert "2 of 5 keys are left out, the first is 'lora_unet_conv_in.diff_b'" in read.warnings[0]


NAME = "lora_unet_" + KEY.replace(".", "_")
BAD = {
    "dora": (plain(**{f"{NAME}.dora_scale": randn(640, 1)}), "DoRA"),
    "dora of peft": (plain(**{f"unet.{KEY}.lora_magnitude_vector.weight": randn(6)}), "DoRA"),
    "not a number": (plain(**{f"{NAME}.lora_up.weight": torch.full((640, 2), torch.nan)}), f"{NAME}: not all factors are finite"),
    "no up": ({k: t for k, t in plain().items() if "up" not in k}, f"{NAME}: up is missing"),
    "ranks differ": (plain(**{f"{NAME}.lora_up.weight": randn(640, 3)}), r"\(640, 3\)"),
    "Stable Diffusion 2": (kohya(KEY, randn(640, 2), randn(2, 1024)), "width 1024"),
    "HiDream": (
        {"lora_unet_double_stream_blocks_0_block_attn1_to_q.lora_up.weight": randn(4, 2)},
        "HiDream.*no LoRA of Stable Diffusion 1, SDXL,",
    ),
    "something else": ({"model.weight": randn(4, 2)}, "no LoRA of Stable Diffusion 1, SDXL, .*'model.weight'"),
    "twice": (plain(**diffusers(KEY, randn(640, 2), randn(2, 768))), "stands twice"),
    "no base": (kohya("mid_block.resnets.0.conv1", randn(4, 2, 1, 1), randn(2, 4, 3, 3)), "give the architecture"),
    "kernel": (plain(**kohya("conv_in", randn(4, 2, 1, 1), randn(2, 4, 5, 5))), r"kernel \(5, 5\)"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_cannot_be_a_concept_is_refused(what, tmp_path):
    state, said = BAD[what]
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=rf"(?s)bad\.safetensors: .*{said}"):
        import_file(tmp_path / "bad.safetensors")


def test_a_given_architecture_is_taken_where_it_fits():
    state = kohya("mid_block.resnets.0.conv1", randn(4, 2, 1, 1), randn(2, 4, 3, 3))
    assert read_lora(state, {}, "sd1-2x32").architecture == "sd1-2x32"
    with pytest.raises(ValueError, match="does not fit sdxl-70x2048"):
        read_lora(plain(), {}, SDXL)


@pytest.mark.parametrize(
    "module", ["lora_unet_down_blocks_0_resnets_0_norm1", "unet.conv_norm_out", "transformer.blocks.0", "lora_te_text_projection"]
)
def test_layers_that_factors_cannot_change_have_no_name(module):
    assert all(canonical(module, family) is None for family in families())


def test_a_damaged_file_is_refused_by_its_name_or_read_and_nothing_else(tmp_path):
    pick, file = random.Random(0), tmp_path / "x.safetensors"
    sources = [save({k: t for layer, pair in factors().items() for k, t in naming(layer, *pair).items()}) for naming in NAMINGS]
    refused = 0
    for _ in range(400):
        data = bytearray(pick.choice(sources))
        if pick.random() < 0.2:
            data = data[: pick.randrange(len(data))]
        for _ in range(pick.choice([1, 30])):
            data[pick.randrange(min(len(data), 3000))] ^= 1 << pick.randrange(8)
        file.write_bytes(data)
        try:
            (concept,), _ = import_file(file)
            assert all(f.up.isfinite().all() and f.down.isfinite().all() for f in concept.all_factors.values())
        except ValueError as error:
            assert "x.safetensors: " in str(error)
            refused += 1
    assert refused > 100


SHAPES = {
    "alpha": (f"{NAME}.alpha", (2,), r"alpha is \(2,\): expected one number"),
    "no dimensions": (f"{NAME}.lora_down.weight", (), "do not fit"),
    "one dimension": (f"{NAME}.lora_down.weight", (768,), "do not fit"),
    "of another rank": (f"{NAME}.lora_down.weight", (3, 768), "do not fit"),
}


@pytest.mark.parametrize("what", SHAPES)
def test_wrong_shapes_are_named_with_their_key(what):
    key, shape, said = SHAPES[what]
    with pytest.raises(ValueError, match=f"{NAME}: .*{said}"):
        read_lora(plain(**{key: torch.ones(shape)}), {}, SD1)
