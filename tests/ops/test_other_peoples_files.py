"""Files as people bring them: each is read right, or refused by name with what to do, and every tensor of it is used or named."""

import json
import re
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file
from test_community import BLOCK, KEY, factors, kohya, peft, randn, size

from cidm_ops.__main__ import main
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.exchange import Labels, import_file, read_file
from cidm_ops.lowrank import LowRank
from cidm_ops.models import sd

DOODLE, SD1, SDXL = sd.DOODLE.architecture, sd.SD1.architecture, sd.SDXL.architecture
NAME = "lora_unet_" + KEY.replace(".", "_")


def pair(rank=2):
    """Up and down of the key layer."""
    return randn(640, rank), randn(rank, 768)


def read(content, tmp_path, name="x.safetensors", **labels):
    """What a file with this content is read as; every tensor of it is used or named, none is both."""
    if name.endswith(".safetensors"):
        save_file(content, tmp_path / name)
    else:
        torch.save(content, tmp_path / name)
    return accounted(read_file(tmp_path / name, Labels(**labels)), content)


def accounted(reading, content):
    if not any(isinstance(value, dict) for value in content.values()):
        assert {*reading.used, *reading.unused} == {*content} and not {*reading.used} & {*reading.unused}
    for key in reading.unused:
        assert any(f"{len(reading.unused)} of" in w or key in w for w in reading.warnings), key
    return reading


# -- LoRAs ----------------------------------------------------------------------------------------------------------------------------

COMPILED = {
    "compiled": "_orig_mod.{layer}.lora_{side}.weight",
    "compiled model in a pipeline": "unet._orig_mod.{layer}.lora_{side}.weight",
    "compiled inside peft": "base_model.model._orig_mod.{layer}.lora_{side}.weight",
    "compiled outside peft": "_orig_mod.base_model.model.{layer}.lora_{side}.default.weight",
    "distributed": "module.{layer}.lora_{side}.weight",
    "distributed in a pipeline": "unet.module.{layer}.lora_{side}.weight",
    "sharded": "_fsdp_wrapped_module.unet.{layer}.lora_{side}.weight",
    "a checkpointed block": "unet._checkpoint_wrapped_module.{layer}.lora_{side}.weight",
    "an adapter with a hyphen": "unet.{layer}.lora_{side}.my-style.weight",
    "an adapter of other letters": "unet.{layer}.lora_{side}.\u732b 1.weight",
    "in a container": "state_dict.unet.{layer}.lora_{side}.weight",
    "in two containers": "model.network.unet.{layer}.lora_{side}.weight",
}


@pytest.mark.parametrize("wrapped", COMPILED)
def test_what_wraps_a_name_says_nothing(wrapped, tmp_path):
    up, down = pair()
    keys = {side: COMPILED[wrapped].format(layer=KEY, side=side) for side in "AB"}
    reading = read({keys["A"]: down, keys["B"]: up}, tmp_path)
    torch.testing.assert_close(reading.concept.factors[KEY].delta(), up @ down)
    assert not reading.unused


def test_kohyas_names_of_a_compiled_model_are_read(tmp_path):
    up, down = pair()
    state = {key.replace("lora_unet_", "lora_unet__orig_mod_"): t for key, t in kohya(KEY, up, down).items()}
    assert list(read(state, tmp_path).concept.factors) == [KEY]


@pytest.mark.parametrize("nested", [("state_dict",), ("lora",), ("model", "state_dict"), ("module",), ()])
def test_a_pickle_holds_its_tensors_under_any_container(nested, tmp_path):
    up, down = pair()
    content = kohya(KEY, up, down)
    for name in reversed(nested):
        content = {name: content, "epoch": 3}
    reading = read(content, tmp_path, "x.pt")
    torch.testing.assert_close(reading.concept.factors[KEY].delta(), up @ down)
    assert len(reading.used) == 3 and not reading.unused


def test_what_lies_beside_the_container_is_named(tmp_path):
    content = {"state_dict": kohya(KEY, *pair()), "optimizer": {"state": {0: {"exp_avg": randn(640, 2)}}}}
    reading = read(content, tmp_path, "x.ckpt")
    assert list(reading.unused) == ["optimizer.state.0.exp_avg"] and "'optimizer.state.0.exp_avg'" in reading.warnings[0]


NUMBERED = {f"{part}:{i}:{side}": torch.randn(*((768, 4) if side == "up" else (4, 768))) for part in ("unet", "text_encoder")
            for i in range(2) for side in ("up", "down")}  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"<s1>": randn(768)}, {f"{NAME}.alpha": torch.tensor(1.0)}])
def test_layers_by_number_are_refused_by_what_they_are_and_are_no_embedding(more, tmp_path):
    save_file({key: t.half() for key, t in (NUMBERED | more).items()}, tmp_path / "old.safetensors", {"unet": '["CrossAttention"]'})
    with pytest.raises(ValueError, match=r"^old\.safetensors: a LoRA as lora_diffusion wrote the first ones.*diffusers' names"):
        import_file(tmp_path / "old.safetensors")
    torch.save({"state_dict": NUMBERED | more}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match=r"^nested\.pt: a LoRA as lora_diffusion"):
        import_file(tmp_path / "nested.pt")
    torch.save(list(NUMBERED.values()), tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"^old\.pt: a list of 8 tensors without names.*lora_diffusion"):
        import_file(tmp_path / "old.pt")


PRODUCTS = {
    "OFT of kohya": ({f"{NAME.replace('lora', 'oft')}.oft_blocks": randn(8, 40, 40)}, "OFT"),
    "OFT of LyCORIS": ({f"{NAME}.oft_blocks": randn(8, 40, 40), f"{NAME}.alpha": torch.tensor(0.1)}, "OFT"),
    "OFT in its first form": ({f"{NAME}.oft_diag": randn(8, 40, 40)}, "OFT"),
    "BOFT of LyCORIS": ({f"{NAME}.oft_blocks": randn(3, 8, 40, 40), f"{NAME}.rescale": randn(640, 1)}, "OFT"),
    "OFT of peft": ({f"base_model.model.{KEY}.oft_r": randn(8, 40, 40)}, "OFT"),
    "BOFT of peft": ({f"base_model.model.{KEY}.boft_R": randn(1, 8, 40, 40), f"base_model.model.{KEY}.boft_s": randn(640, 1)}, "BOFT"),
    "IA3 of LyCORIS": ({f"{NAME}.weight": randn(640), f"{NAME}.on_input": torch.tensor(False)}, "IA3"),
    "IA3 of peft": ({f"base_model.model.{KEY}.ia3_l": randn(640, 1)}, "IA3"),
    "GLoRA": ({f"{NAME}.{part}.weight": randn(4, 4) for part in ("a1", "a2", "b1", "b2")}, "GLoRA"),
    "VeRA": ({f"base_model.model.{KEY}.vera_lambda_{part}": randn(4) for part in "bd"}, "VeRA"),
    "AdaLoRA": ({f"base_model.model.{KEY}.lora_E": randn(4, 1)} | peft(KEY, *pair()), "AdaLoRA"),
    "DoRA": (kohya(KEY, *pair()) | {f"{NAME}.dora_scale": randn(640, 1)}, "DoRA"),
    "DoRA of peft": (peft(KEY, *pair()) | {f"base_model.model.{KEY}.lora_magnitude_vector.default.weight": randn(640)}, "DoRA"),
    "whole weights": ({f"{NAME}.set_weight": randn(640, 768)}, "in place of the base's own"),
}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_kind_that_is_no_sum_is_refused_by_its_name(kind, alone, tmp_path):
    state, said = PRODUCTS[kind]
    other = kohya(f"{BLOCK}.attn2.to_v", *pair())
    save_file({key: t for key, t in (state if alone else state | other).items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"^x\.safetensors: .*{said}.*no sum: look for a LoRA of the same"):
        import_file(tmp_path / "x.safetensors")


def test_what_is_no_weight_of_a_layer_is_named_with_the_reason(tmp_path):
    more = {
        "lora_unet_conv_in.diff_b": randn(320),
        "lora_unet_down_blocks_0_resnets_0_norm1.w_norm": randn(320),
        "lora_unet_down_blocks_0_resnets_0_norm2.diff": randn(320),
        f"base_model.model.{KEY}.lora_B.bias": randn(640),
        "lora_unet_down_blocks_9_resnets_0_conv1.lora_up.weight": randn(320, 2),
        "something.else": randn(3),
    }
    reading = read(kohya(KEY, *pair()) | more, tmp_path)
    assert {*reading.unused} == {*more} and reading.warnings[0].startswith("6 of 9 keys are left out")
    for said in ("2 a bias", "2 a norm", f"1 a layer that {SD1} does not have", "1 no name that is known, such as 'something.else'"):
        assert said in reading.warnings[0]


TWICE = {
    "two adapters": {f"unet.{KEY}.lora_{side}.{name}.weight": t for name in ("one", "two") for side, t in zip("BA", pair(), strict=True)},
    "two names": kohya(KEY, *pair()) | {f"unet.{KEY}.lora_{side}.weight": t for side, t in zip("BA", pair(), strict=True)},
    "two kinds": kohya(KEY, *pair()) | {f"{NAME}.diff": randn(640, 768)},
    "a side whole and in factors": {f"{NAME}.lokr_w1": randn(20, 4), f"{NAME}.lokr_w1_a": randn(20, 2), f"{NAME}.lokr_w2": randn(32, 192)},
}


@pytest.mark.parametrize("what", TWICE)
def test_what_stands_twice_is_refused_and_none_of_it_is_passed_over(what, tmp_path):
    save_file(TWICE[what], tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"^x\.safetensors: .*(twice|beside each other)"):
        import_file(tmp_path / "x.safetensors")


def test_a_scalar_beside_the_factors_is_one_more_factor(tmp_path):
    up, down = pair()
    reading = read(kohya(KEY, up, down) | {f"{NAME}.scalar": torch.tensor(0.5)}, tmp_path)
    torch.testing.assert_close(reading.concept.factors[KEY].delta(), 0.5 * up @ down)


def test_whole_numbers_are_no_factors(tmp_path):
    save_file(kohya(KEY, torch.ones(640, 2, dtype=torch.int8), randn(2, 768)), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"^x\.safetensors: {NAME}: up is of the type int8: expected numbers with a fraction"):
        import_file(tmp_path / "x.safetensors")


# -- how strongly peft's kinds act ----------------------------------------------------------------------------------------------------

W1, W2 = randn(20, 4), randn(32, 192)
A, B, C, D = randn(640, 4), randn(4, 768), randn(640, 4) + 1, randn(4, 768) + 1
LOKR = {"lokr_w1": W1, "lokr_w2": W2}
LOHA = {"hada_w1_a": A, "hada_w1_b": B, "hada_w2_a": C, "hada_w2_b": D}
PEFT = {
    "LoKr": (LOKR, {"peft_type": "LOKR", "r": 8, "alpha": 4}, torch.kron(W1, W2) * 4 / 8),
    "LoKr, its pattern": (
        LOKR,
        {"peft_type": "LOKR", "r": 8, "alpha": 4, "alpha_pattern": {"attn2.to_k": 16}},
        torch.kron(W1, W2) * 16 / 8,
    ),
    "LoKr, ranks": (LOKR, {"peft_type": "LOKR", "r": 8, "alpha": 4, "rank_pattern": {"to_k": 2}}, torch.kron(W1, W2) * 4 / 2),
    "LoKr in factors": (
        {"lokr_w1": W1, "lokr_w2_a": randn(32, 4), "lokr_w2_b": randn(4, 192)},
        {"peft_type": "LOKR", "r": 4, "alpha": 2},
        torch.kron(W1, randn(32, 4) @ randn(4, 192)) * 2 / 4,
    ),
    "LoHa": (LOHA, {"peft_type": "LOHA", "r": 4, "alpha": 2}, (A @ B) * (C @ D) * 2 / 4),
    "LoRA": ({"lora_A.weight": B, "lora_B.weight": A}, {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "alpha": 99}, A @ B * 2 / 4),
}


@pytest.mark.parametrize("kind", PEFT)
def test_every_kind_of_peft_acts_as_strongly_as_its_settings_say(kind, tmp_path):
    parts, settings, whole = PEFT[kind]
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    state = {f"base_model.model.{KEY}.{part}": t for part, t in parts.items()}
    reading = read(state, tmp_path, "adapter_model.safetensors", rank=640)
    found = reading.concept.factors[KEY].delta()
    torch.testing.assert_close(found.norm(), whole.norm(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


SETTINGS = {
    "no JSON": ("{", "no JSON"),
    "nested for ever": ("[" * 100_000, "no JSON"),
    "a list": ("[]", "no settings"),
    "another kind": ('{"peft_type": "VERA"}', "peft_type 'VERA': expected LORA, LOHA, LOKR"),
    "moved weights": ('{"init_lora_weights": "pissa_niter_16"}', "moved the base's own weights"),
    "a text for a number": ('{"r": "8", "lora_alpha": 4}', "r '8': expected a number"),
    "no rank": ('{"r": 0}', "expected ranks of at least 1"),
    "a pattern of texts": ('{"alpha_pattern": {"to_k": "x"}}', "alpha_pattern .*expected numbers"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_that_cannot_be_followed_are_refused_with_their_file(what, tmp_path):
    text, said = SETTINGS[what]
    (tmp_path / "adapter_config.json").write_text(text)
    save_file(peft(KEY, *pair()), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"^adapter_model\.safetensors: .*{said}"):
        import_file(tmp_path / "adapter_model.safetensors")


# -- words, alone and with a LoRA -----------------------------------------------------------------------------------------------------

L, G = randn(2, 768), randn(2, 1280)
WORDS = {
    "clip_l, clip_g": ({"clip_l": L, "clip_g": G}, SDXL),
    "numbers, of pivotal tuning": ({"text_encoders_0": L, "text_encoders_1": G}, SDXL),
    "folders of diffusers": ({"text_encoder": L, "text_encoder_2": G}, SDXL),
    "kohya": ({"emb_params": L}, SD1),
    "AUTOMATIC1111": ({"string_to_param": {"*": L}, "string_to_token": {"*": torch.tensor(265)}, "name": "x", "step": 9}, SD1),
    "diffusers": ({"<cat>": L}, SD1),
    "diffusers, a word without brackets": ({"cat-toy": L}, SD1),
    "one encoder by number": ({"text_encoders_0": L}, SD1),
    "two words": ({"<s0>": L[0], "<s1>": L[1]}, SD1),
    "doodle": ({"clip_l": randn(2, 160)}, DOODLE),
}


@pytest.mark.parametrize("ending", ["safetensors", "pti", "pt"])
@pytest.mark.parametrize("layout", WORDS)
def test_words_are_read_by_name_for_all_encoders(layout, ending, tmp_path):
    content, architecture = WORDS[layout]
    flat = not any(isinstance(value, dict) for value in content.values())
    if ending == "pti" and flat:
        (tmp_path / "x.pti").write_bytes(save(content))
        reading = accounted(read_file(tmp_path / "x.pti"), content)
    else:
        reading = read(content, tmp_path, f"x.{ending}" if flat else "x.pt")
    concept = reading.concept
    assert concept.architecture == architecture and not concept.all_factors and concept.words == ("<x.1>", "<x.2>") and not reading.unused
    given = {"clip_l": randn(2, 160) if architecture == DOODLE else L} | ({"clip_g": G} if architecture == SDXL else {})
    assert {*concept.tokens} == {*given} and all(torch.equal(concept.tokens[e][:, 0], rows) for e, rows in given.items())


NO_WORDS = {
    "factors without a layer": {"up": randn(4, 768)},
    "one key without a dot among others": {"text_model:q": randn(4, 768), "other": randn(768, 4)},
    "more rows than a text has room for": {"emb_params": randn(76, 768)},
    "a token table": {"clip_l": torch.zeros(49408, 768)},
    "one encoder of two": {"clip_g": G},
    "as many rows for each": {"clip_l": L, "clip_g": randn(3, 1280)},
    "words of other encoders": {"<a>": L, "clip_g": G},
    "whole numbers": {"emb_params": torch.ones(2, 768, dtype=torch.int32)},
}


@pytest.mark.parametrize("what", NO_WORDS)
def test_what_is_no_word_is_refused(what, tmp_path):
    save_file(NO_WORDS[what], tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"^x\.safetensors: "):
        import_file(tmp_path / "x.safetensors")


XL = "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
BUNDLES = {
    "AUTOMATIC1111": (KEY, {"bundle_emb.ohwx.string_to_param.*": L}, SD1),
    "OneTrainer": (KEY, {"bundle_emb.<my.word>.emb_params": L}, SD1),
    "OneTrainer, SDXL": (XL, {"bundle_emb.ohwx.clip_l": L, "bundle_emb.ohwx.clip_g": G}, SDXL),
    "two words": (KEY, {"bundle_emb.a.emb_params": L[:1], "bundle_emb.b.emb_params": L[1:]}, SD1),
    "ai-toolkit": (KEY, {"emb_params": L}, SD1),
    "ai-toolkit, SDXL": (XL, {"clip_l": L, "clip_g": G}, SDXL),
    "pivotal tuning": (XL, {"text_encoders_0": L, "text_encoders_1": G}, SDXL),
    "words of diffusers": (KEY, {"<s0>": L[0], "<s1>": L[1]}, SD1),
}


@pytest.mark.parametrize("tool", BUNDLES)
def test_a_lora_and_its_words_are_one_concept(tool, tmp_path):
    layer, rows, architecture = BUNDLES[tool]
    up, down = randn(640, 2), randn(2, 768 if layer == KEY else 2048)
    reading = read(kohya(layer, up, down) | rows, tmp_path, triggers=("hat",))
    concept = reading.concept
    torch.testing.assert_close(concept.factors[layer].delta(), up @ down)
    assert concept.architecture == architecture and concept.words == ("<x.1>", "<x.2>") and not reading.unused
    assert torch.equal(concept.tokens["clip_l"][:, 0], L) and ("clip_g" in concept.tokens) == (architecture == SDXL)
    if word := next((key.split(".")[1] for key in rows if key.startswith("bundle_emb.") and "my." not in key), ""):
        assert any(f"the word {word} is now <x.1>" in w for w in reading.warnings)
    bank = Bank(tmp_path / "bank").add(concept)
    assert bank.read("a <x>").text == "a <x.1> <x.2>" and bank.read("a hat").strengths == {"x": 1.0}
    assert torch.equal(bank.get("x").tokens["clip_l"], concept.tokens["clip_l"])


def test_rows_that_the_base_cannot_read_are_named(tmp_path):
    more = {"bundle_emb.ohwx.clip_g": G, "bundle_emb.ohwx.clip_l": L, "bundle_emb.ohwx.clip_l_out": L.clone()}
    reading = read(kohya(KEY, *pair()) | more, tmp_path)
    assert {*reading.unused} == {*more} and not reading.concept.words
    said = "\n".join(reading.warnings)
    assert (
        "Stable Diffusion 1 reads clip_l" in said and "rows that stand behind a text encoder, such as 'bundle_emb.ohwx.clip_l_out'" in said
    )


# -- sizes ----------------------------------------------------------------------------------------------------------------------------

MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"


def test_factors_that_no_layer_of_the_base_has_are_refused_with_layer_and_shapes(tmp_path, capsys):
    save_file(kohya(MIDDLE, randn(333, 4), randn(4, 777)), tmp_path / "x.safetensors")
    argv = ["bank", "import", str(tmp_path / "x.safetensors"), "--bank", str(tmp_path / "b"), "--architecture", DOODLE, "--trigger", "zz"]
    assert main(argv) == 2 and not Bank(tmp_path / "b").names
    said = capsys.readouterr().err
    assert all(part in said for part in (MIDDLE, "[333, 777]", "[128, 128]", "x.safetensors")) and said.count("\n") == 1


@pytest.mark.parametrize("family", [sd.SD1, sd.SDXL, sd.DOODLE], ids=lambda f: f.name + f.architecture)
def test_every_layer_of_a_base_takes_its_own_size_and_no_other(family, tmp_path):
    for layer in [*family.shapes][:: len(family.shapes) // 25]:
        out, *rest = size(layer, family)
        up, down = torch.zeros(out, 1, *[1] * (len(rest) - 1)), torch.zeros(1, *rest)
        key = family.file_key(layer)

        def lora(up, down, key=key):
            return {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(1.0)}

        reading = read(lora(up, down), tmp_path, architecture=family.architecture)
        assert list(reading.concept.all_factors) == [layer]
        for wrong in (lora(up[1:].contiguous(), down), lora(up, down[:, 1:].contiguous())):
            with pytest.raises(ValueError, match=rf"does not fit {family.architecture}: {layer} is \[{out}, "):
                read(wrong, tmp_path, architecture=family.architecture)


def test_layers_tell_the_base_by_their_sizes_where_only_one_has_them(tmp_path):
    out, *rest = size("up_blocks.1.resnets.1.conv1", sd.SDXL)
    layer = "up_blocks.1.resnets.1.conv1"
    reading = read(kohya(layer, randn(out, 2, 1, 1), randn(2, *rest)), tmp_path)
    assert reading.concept.architecture == SDXL


def test_a_concept_and_a_model_of_other_sizes_are_told_before_anything_is_painted(tmp_path, capsys):
    pytest.importorskip("diffusers")
    odd = LowRank(randn(333, 4), randn(4, 777))
    Bank(tmp_path).add(Concept(name="odd", class_word="", architecture=DOODLE, factors={MIDDLE: odd}, triggers=("zz",)))
    assert main(["generate", "--bank", str(tmp_path), "--prompt", "zz dog", "--out", str(tmp_path / "out"), "--steps", "1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert all(part in said for part in ("'odd'", MIDDLE, "[333, 777]", "[128, 128]")) and not list(tmp_path.glob("out/*.png"))


# -- what is no file of tensors -------------------------------------------------------------------------------------------------------

WHOLE = save(kohya(KEY, *pair()))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
NOT_DOWNLOADED = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3226184\n", "Git LFS.*git lfs pull"),
    "annex": (b"/annex/objects/MD5-s1--d41d8cd98f\n", "git-annex.*git annex get"),
    "page": (b"<!DOCTYPE html><html><body>Sign in to download</body></html>", "a web page.*sign in"),
    "page in capitals, with white space": (b"\n\n  <HTML><BODY>Not found</BODY></HTML>", "a web page"),
    "answer in XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
    "answer in JSON": (b'{"error": "Invalid credentials in Authorization header"}', "a JSON text"),
    "a sentence": (b"Entry not found", "a text"),
    "nothing": (b"", "an empty file"),
    "room for a download": (bytes(100_000), "a download that is not done"),
    "half": (WHOLE[: len(WHOLE) // 2], f"a cut-off download, {len(WHOLE) // 2} of {len(WHOLE)} bytes"),
    "a few bytes": (WHOLE[:60], "a cut-off download, 60 of"),
    "half an archive": (b"PK\x03\x04" + bytes(30), "a cut-off download or a damaged archive"),
    "a picture": (PNG, "a picture"),
    "a photo": (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(20), "a picture"),
    "packed": (b"\x1f\x8b\x08" + bytes(20), "an archive: unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "an archive: unpack it"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(20), "a GGUF model"),
    "a program": (b"MZ\x90\0" + bytes(60), "a program"),
    "a document": (b"%PDF-1.7\n" + bytes(20), "a PDF"),
}


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("what", NOT_DOWNLOADED)
def test_a_file_that_is_none_is_told_by_what_it_is(what, ending, tmp_path, capsys):
    data, said = NOT_DOWNLOADED[what]
    file = tmp_path / f"x.{ending}"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^x\.{ending}: .*{said}"):
        import_file(file)
    assert main(["bank", "import", str(file), "--bank", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not any(word in said for word in ("Traceback", "Error while", "Weights only", "pickle"))


@pytest.mark.parametrize("what", NOT_DOWNLOADED)
def test_a_file_of_a_bank_that_is_none_is_told_by_what_it_is_too(what, tmp_path):
    data, said = NOT_DOWNLOADED[what]
    said = "an archive" if data.startswith(b"PK") else said
    (tmp_path / "x.safetensors").write_bytes(data)
    assert re.search(rf"^x\.safetensors: .*{said}", Bank(tmp_path).damaged["x"])
    assert "Error while" not in Bank(tmp_path).damaged["x"]


def test_an_archive_of_other_files_is_named_with_one_of_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("dog.safetensors", WHOLE)
    with pytest.raises(ValueError, match=r"^x\.pt: a zip archive of 1 files, 'dog.safetensors' among them: unpack it"):
        import_file(tmp_path / "x.pt")


def test_a_file_that_unpacks_to_more_than_it_has_is_refused_before_it_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", bytes(50_000_000))
    with pytest.raises(ValueError, match=r"^x\.pt: its parts claim 50000004 bytes"):
        import_file(tmp_path / "x.pt")


def test_a_tensor_that_says_it_is_larger_than_its_file_is_refused(tmp_path):
    torch.save({"emb_params": torch.ones(1).expand(10**7, 768)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"^x\.pt: emb_params is \(10000000, 768\), more than the file of \d+ bytes holds"):
        import_file(tmp_path / "x.pt")


OTHER_FILES = {
    "HiDream": ({"diffusion_model.double_stream_blocks.0.block.attn1.to_q.lora_A.weight": randn(4, 8)}, "HiDream"),
    "a checkpoint": ({"model.diffusion_model.input_blocks.0.0.weight": randn(4, 4)}, "weights of a model"),
    "a ControlNet": ({"control_model.input_hint_block.0.weight": randn(4, 4)}, "a ControlNet"),
    "an IP-Adapter": ({"image_proj.proj.weight": randn(4, 4)}, "an IP-Adapter"),
    "Custom Diffusion": ({f"unet.{BLOCK}.attn2.processor.to_k_custom_diffusion.weight": randn(4, 4)}, "a Custom Diffusion"),
    "a text encoder": ({"text_model.encoder.layers.0.mlp.fc1.weight": randn(4, 4)}, "a text encoder"),
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_tensors_of_another_kind_are_named(what, tmp_path):
    state, said = OTHER_FILES[what]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"^x\.safetensors: .*{said}.*no LoRA of Stable Diffusion 1, SDXL, Doodle"):
        import_file(tmp_path / "x.safetensors")


def test_a_hypernetwork_is_named(tmp_path):
    torch.save({320: [{"w": randn(2, 2)}], "step": 3, "name": "x"}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"^x\.pt: a hypernetwork of AUTOMATIC1111"):
        import_file(tmp_path / "x.pt")


@pytest.mark.parametrize("stem", ["\u732b\u5a18", "\U0001f436", "---", "\u00df"])
def test_a_file_whose_name_makes_no_concepts_name_asks_for_one(stem, tmp_path, capsys):
    save_file(kohya(KEY, *pair()), tmp_path / f"{stem}.safetensors")
    argv = ["bank", "import", str(tmp_path / f"{stem}.safetensors"), "--bank", str(tmp_path / "b")]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "file's name" in said and "--name" in said and "''" not in said
    assert main([*argv, "--name", "cat"]) == 0 and Bank(tmp_path / "b").names == ["cat"]


def test_many_keys_of_the_same_kind_stay_readable(tmp_path):
    more = {f"other.{i}": randn(1) for i in range(500)}
    reading = read(kohya(KEY, *pair()) | more, tmp_path)
    assert len(reading.warnings[0]) < 400 and "500 of 503" in reading.warnings[0]
    assert {*factors()} > {KEY}
