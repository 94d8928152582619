"""LoRA files of Flux.1, Chroma, Flux.2 Klein, Lumina 2, Z-Image, Qwen-Image, Stable Diffusion 3.5, Anima and Krea 2, in the spelling of
every tool, become the same exact change of the same layers.
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformer_layouts import ANIMA_HOST, ATTENTION, HOST, SMALL, TRANSFORMERS, parts_of

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.concept_file import load_concept
from cidm_ops.bank.exchange import import_file
from cidm_ops.bank.export import export_concept, export_merged, fused_factors
from cidm_ops.lowrank import LowRank
from cidm_ops.models.anima import ANIMA
from cidm_ops.models.flux import CHROMA, FLUX
from cidm_ops.models.flux2 import KLEIN_4B, KLEIN_9B
from cidm_ops.models.krea2 import KREA2
from cidm_ops.models.mmdit import LARGE, MEDIUM
from cidm_ops.models.nextdit import LUMINA, Z_IMAGE
from cidm_ops.models.qwen import QWEN
from cidm_ops.models.registry import families, family_of
from cidm_ops.painting.composition import left_out


def random_factors(shape: tuple[int, int], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape[0], rank), torch.randn(rank, shape[1])


def fused_file(family, key, parts: tuple[str, str], alpha: bool) -> tuple[dict, dict]:
    """A file in the host's modules, and the change of each module that it means."""
    state, deltas = {}, {}
    for i, (module, shape) in enumerate(HOST[family].items()):
        up, down = random_factors(shape, 2 + i % 3)
        scale = 0.25 * (i % 5 + 1) if alpha else 1.0
        state |= {f"{key(module)}.{parts[0]}": up, f"{key(module)}.{parts[1]}": down}
        if alpha:
            state[f"{key(module)}.alpha"] = torch.tensor(scale * len(down))
        deltas[module] = scale * (up.double() @ down.double())
    return state, deltas


def split_file(family, key, parts: tuple[str, str], alpha: bool) -> tuple[dict, dict]:
    """A file in diffusers' layers, each with a rank and an alpha of its own, and the change of each module of the host that it means."""
    state, deltas, count = {}, {}, 0
    for module, shape in HOST[family].items():
        deltas[module] = torch.zeros(shape, dtype=torch.float64)
        for name, rows in parts_of(family, module).items():
            count += 1
            size = len(range(shape[0])[rows])
            up, down = random_factors((size, shape[1]), 1 + count % 3)
            scale = 0.25 * (count % 5 + 1) if alpha else 1.0
            state |= {f"{key(name)}.{parts[0]}": up, f"{key(name)}.{parts[1]}": down}
            if alpha:
                state[f"{key(name)}.alpha"] = torch.tensor(scale * len(down))
            deltas[module][rows] = scale * (up.double() @ down.double())
    return state, deltas


def flat(root: str):
    return lambda name: root + name.replace(".", "_")


def dotted(root: str):
    return lambda name: root + name


KOHYA, PEFT = ("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight")
SPELLINGS = {
    "kohya": (fused_file, flat("lora_unet_"), KOHYA, True),
    "the host's own": (fused_file, dotted("diffusion_model."), KOHYA, True),
    "ai-toolkit, fused": (fused_file, dotted("diffusion_model."), PEFT, False),
    "ai-toolkit": (split_file, dotted("diffusion_model."), PEFT, False),
    "ai-toolkit, as diffusers": (split_file, dotted("transformer."), PEFT, True),
    "diffusers": (split_file, dotted("transformer."), PEFT, False),
    "peft": (split_file, dotted("base_model.model."), ("lora_B.default.weight", "lora_A.default.weight"), False),
    "OneTrainer": (split_file, flat("lora_transformer_"), KOHYA, True),
    "SimpleTuner": (split_file, flat("lycoris_"), KOHYA, True),
    "musubi": (split_file, flat("lora_unet_"), KOHYA, True),
    "DiffSynth": (split_file, dotted(""), PEFT, False),
}


def merged(concept: Concept) -> dict[str, torch.Tensor]:
    """The change of each module of the host that a concept means, by laying its layers into their rows."""
    family, deltas = family_of(concept.architecture), {}
    for module, shape in HOST[family].items():
        deltas[module] = torch.zeros(shape, dtype=torch.float64)
        for name, rows in parts_of(family, module).items():
            if f := concept.factors.get(name):
                deltas[module][rows] = f.up.double() @ f.down.double()
    return deltas


def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert {*found} == {*expected}
    for module, delta in expected.items():
        torch.testing.assert_close(found[module], delta, rtol=0, atol=1e-6 * float(delta.abs().max()), msg=module)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("family", TRANSFORMERS, ids=lambda f: f.title)
@pytest.mark.parametrize("tool", SPELLINGS)
def test_a_file_of_any_tool_is_the_change_that_it_means(family, tool, tmp_path):
    make, key, parts, alpha = SPELLINGS[tool]
    state, expected = make(family, key, parts, alpha)
    save_file(state, tmp_path / "x.safetensors")
    (read,), said = import_file(tmp_path / "x.safetensors", architecture=SMALL[family])
    assert not [s for s in said if "left out" in s]
    check(merged(read), expected)


@pytest.mark.parametrize("make", [split_file, fused_file])
@pytest.mark.parametrize("family", TRANSFORMERS, ids=lambda f: f.title)
def test_a_concept_is_kept_and_exported_as_it_is(family, make, tmp_path):
    state, expected = make(family, dotted("diffusion_model."), PEFT, True)
    save_file(state, tmp_path / "rex.safetensors")
    (rex,), _ = import_file(tmp_path / "rex.safetensors", architecture=SMALL[family], triggers=["rexx"])
    bank = Bank(tmp_path / "bank").add(rex)
    back = load_concept(bank.file("rex"))
    check(merged(back), expected)
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in load_file(bank.file("rex"))), "as diffusers reads them"
    (lora,) = export_concept(back, tmp_path / "out")
    (again,), _ = import_file(lora, architecture=SMALL[family])
    check(merged(again), expected)
    error = export_merged([back, back], [1.0, -0.5], 64, tmp_path / "out" / "half.safetensors")
    (half,), _ = import_file(tmp_path / "out" / "half.safetensors", architecture=SMALL[family])
    assert error < 1e-6
    check({m: 2 * d for m, d in merged(half).items()}, expected)


@pytest.mark.parametrize("family", TRANSFORMERS, ids=lambda f: f.title)
def test_layers_that_are_apart_become_one_and_come_apart_again(family):
    state, expected = split_file(family, dotted(""), KOHYA, False)
    factors = {n[: -len(".lora_up.weight")]: up for n, up in state.items() if n.endswith("up.weight")}
    factors = {n: LowRank(up, state[f"{n}.lora_down.weight"]) for n, up in factors.items()}
    fused = fused_factors(factors, SMALL[family])
    check({module: f.up.double() @ f.down.double() for module, f in fused.items()}, expected)


def test_a_part_alone_is_fused_with_nothing_in_the_others_rows():
    one = {"layers.0.attn.to_k": LowRank(torch.randn(768, 2), torch.randn(2, 2304))}
    fused = fused_factors(one, LUMINA.architecture)["layers.0.attention.qkv"]
    assert fused.up.shape == (3840, 2) and not fused.up[:2304].any() and not fused.up[3072:].any()
    assert torch.equal(fused.up[2304:3072], one["layers.0.attn.to_k"].up)
    with pytest.raises(ValueError, match=r"layers\.0\.attn\.to_q has no factors"):
        fused_factors({"layers.0.attn.to_k": LowRank(torch.randn(8, 2), torch.randn(2, 24))}, "lumina2-1x24")


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_other_kinds_of_a_fused_layer_come_apart_too(kind, tmp_path):
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    if kind == "LoHa":
        a, b, c, d = torch.randn(72, 2), torch.randn(2, 24), torch.randn(72, 2), torch.randn(2, 24)
        state = {f"{key}.hada_w1_a": a, f"{key}.hada_w1_b": b, f"{key}.hada_w2_a": c, f"{key}.hada_w2_b": d}
        delta = (a @ b) * (c @ d)
    else:
        one, two = torch.randn(6, 4), torch.randn(12, 6)
        state, delta = {f"{key}.lokr_w1": one, f"{key}.lokr_w2": two}, torch.kron(one, two)
    save_file(state, tmp_path / "x.safetensors")
    (read,), _ = import_file(tmp_path / "x.safetensors", architecture="flux1-1+1x24", rank=64)
    assert [*read.factors] == [f"transformer_blocks.0.attn.to_{p}" for p in "qkv"]
    for i, f in enumerate(read.factors.values()):
        torch.testing.assert_close(f.delta(), delta[24 * i : 24 * i + 24], atol=1e-4, rtol=1e-4)


def test_the_settings_of_peft_find_a_fused_layer_by_its_own_name(tmp_path):
    up, down = random_factors((72, 24), 2)
    key = "base_model.model.double_blocks.0.img_attn.qkv"
    save_file({f"{key}.lora_B.weight": up, f"{key}.lora_A.weight": down}, tmp_path / "adapter_model.safetensors")
    own = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "alpha_pattern": {"double_blocks.0.img_attn.qkv": 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(own))
    (read,), _ = import_file(tmp_path / "adapter_model.safetensors", name="rex", architecture="flux1-1+1x24")
    torch.testing.assert_close(read.factors["transformer_blocks.0.attn.to_k"].delta(), 4 * up[24:48] @ down)


def full_file(family, count: int = 2) -> dict[str, torch.Tensor]:
    """A small file at the size of the real model, in diffusers' names: the first layers of its last blocks."""
    found = [n for n in family.shapes if family.block_of(n) and family.locate(n)[1].kind != "feed_forward"]
    state = {}
    for name in found[-count:]:
        up, down = random_factors(family.shapes[name], 1)
        state |= {f"transformer.{name}.lora_B.weight": up, f"transformer.{name}.lora_A.weight": down}
    return state


@pytest.mark.parametrize("family", [FLUX, LUMINA, Z_IMAGE, QWEN, MEDIUM, LARGE, KLEIN_4B, KLEIN_9B, ANIMA, KREA2], ids=lambda f: f.title)
def test_the_base_is_told_by_the_layers(family, tmp_path):
    save_file(full_file(family), tmp_path / "x.safetensors")
    (read,), _ = import_file(tmp_path / "x.safetensors")
    assert read.architecture == family.architecture and len(read.factors) == 2


def test_flux_and_chroma_are_told_apart_by_what_the_file_says(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file(full_file(CHROMA), file)
    (read,), said = import_file(file)
    assert read.architecture == FLUX.architecture
    assert any("does not say whether it is for Flux.1 or Chroma (chroma-19+38x3072)" in s for s in said), said
    save_file(full_file(CHROMA), file, {"modelspec.architecture": "chroma/lora"})
    (read,), said = import_file(file)
    assert read.architecture == CHROMA.architecture and not any("whether" in s for s in said)
    up, down = random_factors((18432, 3072), 1)
    key = "lora_unet_double_blocks_0_img_mod_lin"
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(1.0)}, file)
    (read,), said = import_file(file)
    assert read.architecture == FLUX.architecture and not any("whether" in s for s in said), "Chroma has no modulation in its blocks"


def test_flux_and_qwen_are_told_apart_by_how_many_blocks_they_have_or_by_names_of_one(tmp_path):
    file = tmp_path / "x.safetensors"
    blocks = plain([f"transformer.transformer_blocks.{i}.attn.{n}" for i in range(60) for n in ATTENTION[:3]], (3072, 3072))
    save_file(blocks, file)
    assert import_file(file)[0][0].architecture == QWEN.architecture and len(import_file(file)[0][0].factors) == 180
    first = {n: f for n, f in blocks.items() if n.startswith("transformer.transformer_blocks.3.")}
    save_file(first, file)
    (read,), said = import_file(file)
    assert read.architecture == FLUX.architecture
    assert any("or Chroma (chroma-19+38x3072), Flux.2 Klein (flux2-5+20x3072) or Qwen-Image (qwenimage-60x3072)" in s for s in said), said
    save_file(first, file, {"modelspec.architecture": "Qwen-Image/lora"})
    assert import_file(file)[0][0].architecture == QWEN.architecture
    for name, shape in (("img_mlp.net.2", (3072, 12288)), ("txt_mod.1", (18432, 3072))):
        save_file(first | plain([f"transformer.transformer_blocks.3.{name}"], shape), file)
        (read,), said = import_file(file)
        assert read.architecture == QWEN.architecture and not any("whether" in s for s in said)


def test_flux_1_and_flux_2_are_told_apart_by_sizes_or_by_what_the_file_says(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file(plain(["diffusion_model.single_blocks.0.linear1"], (27648, 3072)), file)
    (read,), said = import_file(file)
    assert read.architecture == KLEIN_4B.architecture and not any("whether" in s for s in said)
    save_file(
        plain(["diffusion_model.double_blocks.0.img_attn.qkv"], (9216, 3072)), file, {"modelspec.architecture": "flux-2-klein-4b/lora"}
    )
    (read,), said = import_file(file)
    assert read.architecture == KLEIN_4B.architecture and not any("whether" in s for s in said)
    save_file(plain(["diffusion_model.double_blocks.0.img_attn.qkv"], (9216, 3072)), file, {"modelspec.architecture": "flux-1-dev/lora"})
    assert import_file(file)[0][0].architecture == FLUX.architecture
    save_file(plain(["transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"], (55296, 6144)), file)
    with pytest.raises(ValueError, match=r"named as those of Flux\.2 Klein and have other sizes"):
        import_file(file)


def test_both_sizes_of_stable_diffusion_3_are_told_by_their_layers_or_by_what_the_file_says(tmp_path):
    file = tmp_path / "x.safetensors"
    for family, width in ((MEDIUM, 1536), (LARGE, 2432)):
        save_file(plain(["diffusion_model.joint_blocks.0.x_block.attn.qkv"], (3 * width, width)), file)
        (read,), said = import_file(file)
        assert read.architecture == family.architecture and len(read.factors) == 3 and not any("whether" in s for s in said)
    key = "lora_unet_joint_blocks_3_x_block_mlp_fc1"
    save_file({f"{key}.lokr_w1": torch.randn(4, 4), f"{key}.lokr_w2": torch.randn(8, 4)}, file, {"modelspec.architecture": "sd3.5-large"})
    with pytest.raises(ValueError, match=r"does not fit sd3-38x2432"):
        import_file(file)


def test_the_modulation_that_hosts_have_in_other_orders_is_left_out_by_name(tmp_path):
    state = full_file(MEDIUM, 12) | plain(["transformer.transformer_blocks.22.norm1_context.linear"], (9216, 1536))
    last = plain(["transformer.transformer_blocks.23.norm1_context.linear"], (3072, 1536))
    save_file(state | last, tmp_path / "x.safetensors")
    (read,), said = import_file(tmp_path / "x.safetensors")
    assert "transformer_blocks.22.norm1_context.linear" in read.factors and len(read.factors) == 13
    small = plain(["lora_unet_joint_blocks_1_context_block_adaLN_modulation_1"], (48, 24))
    save_file(split_file(MEDIUM, dotted("transformer."), PEFT, False)[0] | small, tmp_path / "small.safetensors")
    (few,), told = import_file(tmp_path / "small.safetensors", architecture="sd3-2x24")
    assert "transformer_blocks.0.norm1_context.linear" in few.factors and not [n for n in few.factors if ".1.norm1" in n]
    for words in (said, told):
        assert any("2 a modulation whose rows ComfyUI and diffusers have in different orders, such as" in s for s in words), words


# What diffusers' own converter of Anima's files makes of the host's names.
ANIMA_IN_DIFFUSERS = {
    "blocks.0.self_attn.q_proj": "transformer.transformer_blocks.0.attn1.to_q",
    "blocks.0.self_attn.output_proj": "transformer.transformer_blocks.0.attn1.to_out.0",
    "blocks.0.cross_attn.v_proj": "transformer.transformer_blocks.0.attn2.to_v",
    "blocks.0.mlp.layer1": "transformer.transformer_blocks.0.ff.net.0.proj",
    "blocks.0.mlp.layer2": "transformer.transformer_blocks.0.ff.net.2",
    "blocks.0.adaln_modulation_mlp.2": "transformer.transformer_blocks.0.norm3.linear_2",
    "x_embedder.proj.1": "transformer.patch_embed.proj",
    "final_layer.linear": "transformer.proj_out",
    "llm_adapter.blocks.0.mlp.2": "text_conditioner.blocks.0.mlp.2",
    "llm_adapter.out_proj": "text_conditioner.out_proj",
}


def test_the_names_of_diffusers_for_anima_are_read_too(tmp_path):
    state, expected = {}, {}
    for ours, theirs in ANIMA_IN_DIFFUSERS.items():
        up, down = random_factors(ANIMA_HOST[ours], 2)
        state |= {f"{theirs}.lora_B.weight": up, f"{theirs}.lora_A.weight": down}
        expected[ours] = up @ down
    save_file(state, tmp_path / "x.safetensors")
    (read,), _ = import_file(tmp_path / "x.safetensors", architecture=SMALL[ANIMA])
    assert {*read.factors} == {*expected}
    for layer, delta in expected.items():
        torch.testing.assert_close(read.factors[layer].delta(), delta)


def plain(names, shape=(4, 4)):
    state = {}
    for name in names:
        up, down = random_factors(shape, 1)
        state |= {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    return state


OTHERS = {
    "Wan": plain(["diffusion_model.blocks.0.cross_attn.q", "diffusion_model.blocks.0.self_attn.q"]),
    "Cosmos": plain(["lora_unet_blocks_0_self_attn_q_proj"], (5120, 5120)),
}


@pytest.mark.parametrize("family", OTHERS)
def test_a_file_of_another_family_is_called_so(family, tmp_path):
    save_file(OTHERS[family], tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"x\.safetensors: .*{re.escape(family)}"):
        import_file(tmp_path / "x.safetensors")


def test_a_file_of_which_little_is_known_is_refused_naming_three(tmp_path):
    state = full_file(FLUX) | plain([f"transformer.strange.{i}" for i in range(3)])
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"only 4 of its 10 entries are Flux\.1's.*strange\.0.*strange\.0.*strange\.1"):
        import_file(tmp_path / "x.safetensors")


def test_weights_of_a_model_are_no_lora(tmp_path):
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"weights of Flux\.1 and no change of them"):
        import_file(tmp_path / "x.safetensors")


def test_a_handle_is_written_as_the_trigger_or_the_class_word(tmp_path):
    for name, triggers in (("rex", ["rexx"]), ("tom", [])):
        save_file(full_file(Z_IMAGE), tmp_path / f"{name}.safetensors")
        (concept,), _ = import_file(tmp_path / f"{name}.safetensors", triggers=triggers, class_word="cat")
        bank = Bank(tmp_path / "bank").add(concept)
    said = bank.read("a <rex:0.8> and a <tom>")
    assert said.text == "a rexx and a cat" and said.strengths == {"rex": 0.8, "tom": 1.0}


def test_the_text_encoder_of_flux_has_its_changes_too(tmp_path):
    key = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    up, down = random_factors((3072, 768), 1)
    state = full_file(FLUX) | {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(0.5)}
    save_file(state, tmp_path / "x.safetensors")
    (read,), _ = import_file(tmp_path / "x.safetensors")
    torch.testing.assert_close(read.text_factors[f"{FLUX.encoder().name}.encoder.layers.0.mlp.fc1"].delta(), 0.5 * up @ down)
    assert load_concept(Bank(tmp_path / "bank").add(read).file("x")).text_factors.keys() == read.text_factors.keys()


@pytest.mark.parametrize("family", [*TRANSFORMERS, LARGE, KLEIN_9B], ids=lambda f: f.title)
def test_the_layers_of_a_family_tile_the_hosts_modules(family):
    """Each layer lies in one module, the rows of a module's layers are its own, and all names read back."""
    for layer, (rows, columns) in family.shapes.items():
        if family.encoder_of(layer):
            continue
        module, layers = family.module_of(layer)
        slices = family.slices(module, (sum(family.shapes[name][0] for name in layers), columns), family.width)
        assert (slices[layer].rows, slices[layer].columns) == (rows, columns)
        assert [*slices] == [*layers] and family.layers_in(module) == layers
        assert family.files.read_layer(layer.replace(".", "_")) == layer
        assert family.files.read_layer(module.replace(".", "_")) == (module if len(layers) > 1 else layer)


def test_every_linear_of_a_block_has_its_shape():
    for family in (f for f in TRANSFORMERS if f is not MEDIUM):
        blocks = dict.fromkeys(filter(None, map(family.block_of, family.shapes)))
        assert {f"{b}.{p}" for b in blocks for p in family.parts(b)} == {n for n in family.shapes if family.block_of(n)}
        assert [*blocks] == sorted(blocks, key=family.place)
    assert [f.name for f in families()][:2] == ["sd1", "sdxl"], "files of theirs are looked for first"


def test_how_much_of_a_concept_acts_in_no_region_is_said_by_the_norm_of_its_weights():
    """Three parts in a block and four in its modulation: four of five of the whole norm."""

    def of_norm(norm):
        return LowRank(torch.tensor([[norm], [0.0]]), torch.tensor([[0.0, 1.0]]))

    inside, outside = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.norm1.linear"
    both = Concept(name="rex", class_word="", architecture=FLUX.architecture, factors={inside: of_norm(3.0), outside: of_norm(4.0)})
    (said,) = left_out([both])
    assert said.startswith("<rex> acts in a region without 80% of its change")
    assert left_out([Concept(name="rex", class_word="", architecture=FLUX.architecture, factors={inside: of_norm(3.0)})]) == []
