"""Files from grammars: whatever trainers combine, every tensor is used or named, and whatever else comes is refused in one line.

``CIDM_EXAMPLES=5000 pytest tests/ops/test_files_from_grammars.py`` tries that many files of each kind, others every time.
"""

import json
import math
import re
from dataclasses import dataclass, field

import torch
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save
from test_community import core, diffusers, diffusers_dots, kohya, lycoris, peft, size

from cidm_ops.bank.exchange import Labels, read_file
from cidm_ops.inspection import inspect, lines_of
from cidm_ops.models.checkpoint import schedule_of_checkpoint
from cidm_ops.models.sd import DOODLE, SD1, SDXL

FOREIGN = re.compile(r"Traceback|Error\(|Error while|Weights only|torch\.serialization|object at 0x|\n")


# -- what trainers write ----------------------------------------------------------------------------------------------------------------


def randn(shape, seed, dtype=torch.float32):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1).to(dtype)


@dataclass
class Written:
    """A file, and what it must be read as: deltas by layer, rows by encoder and number, keys that are to be named, or a refusal."""

    state: dict = field(default_factory=dict)
    deltas: dict = field(default_factory=dict)
    words: dict = field(default_factory=dict)
    named: set = field(default_factory=set)
    refused: str = ""


def key_of(layer, family, layout):
    """What begins the keys of a layer's parts, for layouts that any kind of factors is written in."""
    text = re.fullmatch(r"clip_([lg])\.(.+)", layer)
    if layout == "kohya":
        if text and family is SDXL:
            return f"lora_te{1 + (text[1] == 'g')}_text_model_{text[2]}".replace(".", "_")
        return (f"lora_te_text_model_{text[2]}" if text else f"lora_unet_{layer}").replace(".", "_")
    if layout == "diffusers":
        return f"text_encoder{'_2' if text[1] == 'g' else ''}.text_model.{text[2]}" if text else f"unet.{layer}"
    return f"text_encoders.clip_{text[1]}.transformer.text_model.{text[2]}" if text else f"diffusion_model.{layer}"


SMALL = {f: [layer for layer, shape in sorted(f.shapes.items()) if math.prod(shape) < 450_000] for f in (SD1, SDXL, DOODLE)}
WRAPPERS = ("{}", "_orig_mod.{}", "module.{}", "state_dict.{}", "model._orig_mod.{}", "_fsdp_wrapped_module.{}")
ADAPTERS = ("", ".default", ".my-style", ".a b")


@st.composite
def factors(draw, family, written):
    """A layer in some layout and kind, with or without alpha, in some type; what it adds is put down."""
    layer = draw(st.sampled_from(SMALL[family]))
    out, *rest = size(layer, family)
    kernel = tuple(rest[1:])
    assume(layer not in written.deltas)
    layout, seed = draw(st.sampled_from(["kohya", "diffusers", "core"])), draw(st.integers(0, 999))
    kinds = ["lora", "peft names", "loha", "lokr"] + (["locon"] if kernel == (3, 3) else []) + (["diff"] if out * rest[0] < 10_000 else [])
    kind, rank = draw(st.sampled_from(kinds)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    flat = rest[0] * math.prod(kernel)
    tail = [1] * len(kernel)
    key = key_of(layer, family, layout)
    if layout != "kohya":
        key = draw(st.sampled_from(WRAPPERS)).format(key)

    def part(*shape, n=0):
        return randn(shape, seed + n, dtype)

    if kind in ("lora", "peft names"):
        up, down = part(out, rank, *tail), part(rank, *rest, n=1)
        adapter = draw(st.sampled_from(ADAPTERS))
        names = ("lora_up.weight", "lora_down.weight") if kind == "lora" else (f"lora_B{adapter}.weight", f"lora_A{adapter}.weight")
        parts, delta, dim = {names[0]: up, names[1]: down}, up.float().flatten(1) @ down.float().flatten(1), rank
    elif kind == "locon":
        up, mid, down = part(out, rank, 1, 1), part(rank, rank, *kernel, n=1), part(rank, rest[0], 1, 1, n=2)
        parts = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down}
        inner = torch.einsum("orhw,ri->oihw", mid.float(), down.float().flatten(1))
        delta, dim = up.float().flatten(1) @ inner.flatten(1), rank
    elif kind == "loha":
        a, b, c, d = part(out, rank), part(rank, flat, n=1), part(out, rank, n=2), part(rank, flat, n=3)
        parts = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
        delta, dim = (a.float() @ b.float()) * (c.float() @ d.float()), rank
    elif kind == "lokr":
        one = part(2, 1)
        if draw(st.booleans()) and out // 2 >= rank:
            a, b = part(out // 2, rank, n=1), part(rank, flat, n=2)
            parts, delta, dim = {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b}, torch.kron(one.float(), a.float() @ b.float()), rank
        else:
            a, b = part(out // 2, 1, n=1), part(1, flat, n=2)
            parts, delta, dim = {"lokr_w1": one, "lokr_w2": (two := a @ b)}, torch.kron(one.float(), two.float()), 0
    else:
        a, b = part(out, rank), part(rank, flat, n=1)
        whole = (a @ b).reshape(out, *rest)
        parts, delta, dim = {"diff": whole}, whole.float().flatten(1), 0
    assume(out % 2 == 0 or kind != "lokr")
    if (alpha := draw(st.sampled_from([None, 0.5, 1.0, 4.0]))) is not None:
        parts["alpha"] = torch.tensor(alpha)
        delta = delta * (alpha / dim if dim else 1.0)
    written.state |= {f"{key}.{name}": t for name, t in parts.items()}
    written.deltas[layer] = delta


@st.composite
def rows(draw, family, written):
    """Words in some layout, alone or bundled."""
    count, seed = draw(st.integers(1, 3)), draw(st.integers(0, 999))
    own = {e.name: randn((count, e.width), seed + i) for i, e in enumerate(family.encoders)}
    layouts = [[e.name for e in family.encoders], ["text_encoders_0", "text_encoders_1"], ["text_encoder", "text_encoder_2"]]
    layouts += [["emb_params"], ["string_to_param.*"], ["<cat>"]] if len(own) == 1 else []
    layout = draw(st.sampled_from(layouts))
    bundle = draw(st.sampled_from(["", "bundle_emb.ohwx.", "bundle_emb.<a.b>."])) if layout != ["<cat>"] else ""
    written.state |= {f"{bundle}{name}": t for name, t in zip(layout, own.values(), strict=False)}
    written.words = own
    if draw(st.booleans()) and "clip" in layout[0] and bundle:
        written.state[f"{bundle}{layout[0]}_out"] = randn((count, 4), seed)
        written.named.add(f"{bundle}{layout[0]}_out")


NAMED = st.one_of(
    st.sampled_from([
        "lora_unet_conv_in.diff_b", "lora_unet_down_blocks_0_resnets_0_norm1.w_norm", "lora_unet_down_blocks_0_resnets_0_norm1.b_norm",
        "unet.conv_norm_out.diff", "lora_te_text_model_embeddings_token_embedding.lora_up.weight", "optimizer.0.exp_avg", "epoch",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.lora_B.bias", "lora_unet_down_blocks_77_resnets_0_conv1.alpha",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight", "controlnet.x.weight", "unet.conv_in.base_layer.weight",
    ]),
    st.from_regex(r"[a-z]{2,8}\.[a-z]{2,8}(?<!\.bm)(?<!\.rescale)", fullmatch=True),  # parts of GLoRA and of OFT are refused
)  # fmt: skip
REFUSED = {
    "no sum": [
        "{}.oft_blocks", "{}.oft_diag", "{}.dora_scale", "{}.on_input", "{}.ia3_l", "{}.boft_R", "{}.vera_lambda_b", "{}.lora_E",
        "{}.a1.weight", "{}.lora_magnitude_vector.default.weight", "{}.set_weight",
    ],
    "number": ["unet:0:up", "text_encoder:12:down"],
}  # fmt: skip


@st.composite
def files(draw):
    """A file as a trainer could have written it: layers, words or both, and more."""
    family, written = draw(st.sampled_from([SD1, SDXL, DOODLE])), Written()
    what = draw(st.sampled_from(["layers", "words", "both"]))
    for _ in range(draw(st.integers(1, 3)) if what != "words" else 0):
        draw(factors(family, written))
    if what != "layers":
        draw(rows(family, written))
    for key in draw(st.lists(NAMED, max_size=3, unique=True)):
        if key not in written.state:
            written.state[key] = torch.zeros(2)
            written.named.add(key)
    if draw(st.integers(0, 5)) == 0:
        kind = draw(st.sampled_from(sorted(REFUSED)))
        key = draw(st.sampled_from(REFUSED[kind])).format(key_of(draw(st.sampled_from(sorted(family.shapes))), family, "kohya"))
        written.state[key] = torch.zeros(2)
        written.refused = kind
    return family, written, draw(st.sampled_from(["safetensors", "pt", "nested.pt"]))


def put(state, how, folder):
    """Write a file; what a safetensors file holds by name, a pickle may hold under a container."""
    file = folder / f"x.{how.rpartition('.')[2]}"
    if how == "safetensors":
        file.write_bytes(save({key: t.contiguous() for key, t in state.items()}))
    else:
        torch.save({"state_dict": state, "epoch": 3} if how == "nested.pt" else state, file)
    return file


def told(reading):
    """Every tensor is used or named, and what is not used is counted in a warning with its reason and one key of the kind."""
    assert not {*reading.used} & {*reading.unused}
    said = "\n".join(reading.warnings)
    reasons = {}
    for key, why in reading.unused.items():
        reasons.setdefault(why, []).append(key)
    for why, keys in reasons.items():
        assert why in said and any(repr(key) in said for key in keys), f"silent: {keys}"
    return {*reading.used, *reading.unused}


def refusal(file, **labels):
    """What a reader says of a file that it refuses, or the reading."""
    try:
        reading = read_file(file, Labels(name="x", **labels))
    except ValueError as error:
        text = str(error)
        assert text.startswith(f"{file.name}: ") and len(text) < 2000 and not FOREIGN.search(text), text
        return text, None
    return "", reading


@examples(25)
@given(files())
def test_every_tensor_is_used_or_named_and_what_is_used_is_right(tmp_path, made):
    family, written, how = made
    file = put(written.state, how, tmp_path)
    said, reading = refusal(file, architecture=family.architecture)
    found = inspect(file, family.architecture)
    assert bool(found.refused) == bool(said)
    if written.refused:
        assert {"no sum": "no sum", "number": "number in place of its name"}[written.refused] in said
        return
    if not written.deltas and not written.words:
        assert any(repr(key) in said for key in written.state), said
        return
    assert reading, said
    prefix = "state_dict." if how == "nested.pt" else ""
    assert told(reading) == {f"{prefix}{key}" for key in written.state}
    assert {*reading.unused} == {f"{prefix}{key}" for key in written.named}
    report = "\n".join(lines_of(found))
    assert all(why in report for why in reading.unused.values())
    concept = reading.concept
    assert {*concept.all_factors} == {*written.deltas} and {*concept.tokens} == {*written.words}
    for layer, delta in written.deltas.items():
        got = concept.all_factors[layer].delta()
        assert float((got - delta).norm()) <= 2e-2 * float(delta.norm()) + 1e-9, layer  # whole deltas are rounded to half, so of full rank
    for encoder, own in written.words.items():
        assert torch.equal(concept.tokens[encoder][:, 0], own)


# -- whatever else ------------------------------------------------------------------------------------------------------------------------

LAYER = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
PIECES = st.sampled_from([
    "lora_unet_", "lora_te_", "unet.", "base_model.model.", "_orig_mod.", "bundle_emb.", "<s1>", "clip_l", "emb_params", "*", ":0:", ".",
    LAYER, LAYER.replace("_", "."), ".lora_up.weight", ".lora_down.weight", ".alpha", ".diff", ".hada_w1_a", ".hada_w1_b", ".lokr_w1",
    ".lokr_w2", ".lokr_t2", ".scalar", "lora_A", "lora_B", ".weight", ".bias", "string_to_param", "\u732b", " ", "_out", "text_encoders_0",
])  # fmt: skip
KEYS = st.lists(PIECES, min_size=1, max_size=5).map("".join) | st.text(min_size=1, max_size=20)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 75, 76, 128, 320, 768]), max_size=3).filter(lambda s: math.prod(s) < 300_000)
TYPES = st.sampled_from([torch.float32, torch.float16, torch.int8, torch.bool, torch.float64, torch.int64, torch.float8_e4m3fn])
TENSORS = st.tuples(SHAPES, TYPES, st.sampled_from([0.0, 1.0, float("nan"), float("inf")])).map(
    lambda t: torch.full(t[0], t[2] if t[1].is_floating_point and t[1] != torch.float8_e4m3fn else 1.0).to(t[1])
)


@examples(100)
@given(st.dictionaries(KEYS, TENSORS, min_size=1, max_size=6))
def test_any_names_and_any_shapes_are_used_named_or_refused(tmp_path, state):
    state = {key: t for key, t in state.items() if key != "__metadata__" and "\ud800" not in key}
    try:
        file = put(state, "safetensors", tmp_path)
    except (UnicodeEncodeError, RuntimeError):
        assume(False)
    said, reading = refusal(file)
    assert bool(inspect(file).refused) == bool(said)
    if reading:
        assert told(reading) == {*state}
        assert all(f.up.isfinite().all() and f.down.isfinite().all() for f in reading.concept.all_factors.values())
        assert all(t.isfinite().all() for t in reading.concept.tokens.values())


LEAVES = TENSORS | st.integers() | st.text(max_size=8) | st.none() | st.floats(allow_nan=False)
CONTAINERS = st.sampled_from(["state_dict", "params", "unet", "string_to_param", "new_concept_embedding"])
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.dictionaries(CONTAINERS | KEYS, inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def tensors_of(value, name=""):
    if isinstance(value, torch.Tensor):
        return {name}
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key for k, v in inside for key in tensors_of(v, f"{name}.{k}" if name else str(k))}


@examples(100)
@given(NESTED)
def test_any_pickle_of_plain_things_is_used_named_or_refused(tmp_path, content):
    torch.save(content, file := tmp_path / "x.pt")
    said, reading = refusal(file)
    assert bool(inspect(file).refused) == bool(said)
    if reading:
        assert told(reading) == tensors_of(content)


SOURCES = [save(kohya("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", torch.ones(320, 1), torch.ones(1, 768)))]
HEADS = [
    b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", b"  <HTML>", b'{"error": 1}', b"PK\x03\x04", b"\x80\x02",
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GGUF", b"\x1f\x8b", b"\x10\0\0\0\0\0\0\0{",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f{", b"cposix\nsystem\n",
]  # fmt: skip


@examples(300)
@given(
    st.sampled_from(HEADS), st.binary(max_size=200) | st.text(max_size=60).map(str.encode), st.sampled_from(["safetensors", "pt", "ckpt"])
)
def test_any_bytes_are_refused_in_one_line(tmp_path, head, rest, ending):
    (file := tmp_path / f"x.{ending}").write_bytes(head + rest)
    said, reading = refusal(file)
    assert said or reading
    assert bool(inspect(file).refused) == bool(said) and not FOREIGN.search("".join(lines_of(inspect(file))))


@examples(100)
@given(st.sampled_from(SOURCES), st.data())
def test_a_file_cut_anywhere_or_changed_is_refused_or_read(tmp_path, source, data):
    cut = source[: data.draw(st.integers(0, len(source)), label="length")]
    for place in data.draw(st.lists(st.integers(0, 400), max_size=4), label="places"):
        if place < len(cut):
            cut = cut[:place] + bytes([cut[place] ^ data.draw(st.integers(1, 255))]) + cut[place + 1 :]
    (file := tmp_path / "x.safetensors").write_bytes(cut)
    said, reading = refusal(file)
    if reading:
        told(reading)
    elif len(cut) < len(source) and cut == source[: len(cut)] and len(cut) > 8:
        assert "a cut-off download" in said


NAMES = st.sampled_from(["to_k", "unet.r", "x"]) | st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-3, 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
OF_PEFT = ("r", "lora_alpha", "alpha", "use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "init_lora_weights")
SETTINGS = st.fixed_dictionaries(
    {},
    optional={key: JSON for key in OF_PEFT}
    | {"peft_type": JSON | st.sampled_from(["LORA", "LOHA", "LOKR", "OFT"])},
)  # fmt: skip


@examples(60)
@given(SETTINGS | JSON, st.sampled_from(["lora", "lokr"]))
def test_any_settings_give_a_finite_scale_or_a_refusal(tmp_path, own, kind):
    key = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    parts = {"lora_A.weight": torch.ones(1, 768), "lora_B.weight": torch.ones(320, 1)}
    parts = parts if kind == "lora" else {"lokr_w1": torch.ones(1, 1), "lokr_w2": torch.ones(320, 768)}
    (file := tmp_path / "adapter_model.safetensors").write_bytes(save({f"{key}.{name}": t for name, t in parts.items()}))
    (tmp_path / "adapter_config.json").write_text(json.dumps(own))
    _, reading = refusal(file)
    if reading:
        (f,) = reading.concept.factors.values()
        assert f.up.isfinite().all() and told(reading) == {*reading.used}


PACKED = "lora_adapter_metadata"


@examples(60)
@given(
    st.dictionaries(
        st.sampled_from([*(f"modelspec.{key}" for key in ("trigger_phrase", "author", "thumbnail")), "ss_tag_frequency", PACKED, "x"]),
        st.text(max_size=30) | JSON.map(json.dumps),
    )
)  # fmt: skip
def test_any_metadata_are_read_or_refused(tmp_path, metadata):
    state = kohya("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", torch.ones(320, 1), torch.ones(1, 768))
    try:
        (file := tmp_path / "x.safetensors").write_bytes(save(state, metadata))
    except UnicodeEncodeError:
        assume(False)
    _, reading = refusal(file)
    assert not reading or told(reading) == {*state}


@examples(100)
@given(
    st.sets(st.sampled_from(["v_pred", "ztsnr", "edm_mean", "edm_vpred.sigma_max", "x"])),
    st.sampled_from(["", "epsilon", "v", "V", "rectified_flow"]) | st.text(max_size=5),
)
def test_marks_of_a_checkpoint_are_followed_or_refused(marks, said):
    metadata = {"modelspec.prediction_type": said} if said else {}
    try:
        schedule = schedule_of_checkpoint(marks, metadata, SDXL)
    except ValueError as error:
        assert repr(said[:40].strip().lower()) in str(error) or any(repr(mark) in str(error) for mark in marks)
        return
    assert ("v_pred" in marks or said.lower().startswith("v")) == (schedule.get("prediction_type") == "v_prediction")
    assert ("ztsnr" in marks) == bool(schedule.get("rescale_betas_zero_snr")) and not any(mark.startswith("edm") for mark in marks)


def test_the_grammar_has_every_layout_of_the_fixed_tests():
    """Names that the grammar writes are those that the fixed tests have formulas for."""
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    up, down = torch.ones(320, 1), torch.ones(1, 768)
    for naming, layout in ((kohya, "kohya"), (diffusers, "diffusers"), (diffusers_dots, "diffusers")):
        assert all(key.startswith(key_of(layer, SD1, layout)) for key in naming(layer, up, down))
    assert all(len(naming(layer, up, down)) >= 2 for naming in (core, peft, lycoris))
