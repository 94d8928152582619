"""2,000 concept files that something happened to: each is refused by its name, or is the concept that was written."""

import json
import random
import struct
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from test_manage import small

from cidm_ops.bank import files
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.concept_file import checksum, load_concept, lora_state, save_concept
from cidm_ops.lowrank import LowRank

COUNT = 2000
WRITTEN = replace(
    small("dog", training={"steps": 3, "losses": [0.5, 0.25]}, token_layers=(0, 2, 1), about={"author": "A. Person"}),
    text_factors={"clip_l.encoder.layers.0.self_attn.q_proj": LowRank(torch.ones(3, 2), torch.ones(2, 3))},
)
VALUES = (
    None,
    True,
    -1,
    0,
    7,
    2**70,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x" * 10000,
    "../up",
    [],
    [1],
    [[]],
    ["<dog.1>"],
    {},
    {"a": 1},
)


def flip(data: bytes, draw: random.Random, end: int) -> bytes:
    out = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        out[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(out)


def header_end(data: bytes) -> int:
    return 8 + struct.unpack("<Q", data[:8])[0]


def bytes_flipped(data, state, metadata, draw, save):
    return flip(data, draw, len(data))


def header_flipped(data, state, metadata, draw, save):
    return flip(data, draw, header_end(data))


def numbers_flipped(data, state, metadata, draw, save):
    end = header_end(data)
    return data[:end] + flip(data[end:], draw, len(data) - end)


def cut(data, state, metadata, draw, save):
    return data[: draw.randrange(len(data))]


def grown(data, state, metadata, draw, save):
    return data + (data if draw.random() < 0.3 else draw.randbytes(draw.randint(1, 100)))


def shuffled(data, state, metadata, draw, save):
    a, b = sorted(draw.sample(range(len(data)), 2))
    return data[b:] + data[a:b] + data[:a]


def key_renamed(data, state, metadata, draw, save):
    key = draw.choice(sorted(state))
    state[draw.choice([key.upper(), key + ".1", key[1:], "", draw.choice(sorted(state))])] = state.pop(key)
    return save(state, metadata)


def wrong_dtype(data, state, metadata, draw, save):
    key = draw.choice(sorted(state))
    kinds = [torch.int32, torch.int8, torch.bool, torch.uint8, torch.float16, torch.float64, torch.bfloat16, torch.float8_e4m3fn]
    state[key] = state[key].to(draw.choice(kinds))
    return save(state, metadata)


def wrong_shape(data, state, metadata, draw, save):
    key, other = draw.choice(sorted(state)), draw.choice(sorted(state))
    tensor = state[key]
    state[key] = draw.choice(
        [tensor.T.contiguous() if tensor.ndim == 2 else tensor[None], tensor.flatten(), tensor[..., None], state[other].clone()]
    )
    return save(state, metadata)


def not_finite(data, state, metadata, draw, save):
    tensor = state[draw.choice(sorted(state))]
    tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice([float("nan"), float("inf"), -float("inf")])
    return save(state, metadata)


def header_changed(data, state, metadata, draw, save):
    header = json.loads(metadata["cidm"])
    key = draw.choice(sorted(header))
    if draw.random() < 0.2:
        del header[key]
    else:
        header[key] = draw.choice(VALUES)
    return save(state, metadata | {"cidm": json.dumps(header)})


def header_other(data, state, metadata, draw, save):
    text = draw.choice(["", "{", "[]", "null", "7", "[" * 5000, metadata["cidm"][: draw.randrange(len(metadata["cidm"]))], "{}", "\\"])
    return save(state, metadata | {draw.choice(["cidm", "cidm.tokens"]): text})


def tokens_changed(data, state, metadata, draw, save):
    tokens = json.loads(metadata["cidm.tokens"])
    tokens[draw.choice(["clip_l", "clip_g"])] = draw.choice(
        [*VALUES, tokens["clip_l"][:-8], "AAAA", "A" * 7, tokens["clip_l"][:-4] + "!!!!"]
    )
    return save(state, metadata | {"cidm.tokens": json.dumps(tokens)})


DAMAGE = (
    bytes_flipped, header_flipped, numbers_flipped, cut, grown, shuffled, key_renamed, wrong_dtype, wrong_shape, not_finite, header_changed,
    header_other, tokens_changed,
)  # fmt: skip


def same(a: Concept, b: Concept) -> bool:
    """All that decides a concept; a title, an author or a picture may be edited by other tools."""
    plain = [replace(c, factors={}, text_factors={}, tokens={}, about={}, preview=b"") for c in (a, b)]
    numbers = [lora_state(c) | {f"tokens.{e}": t for e, t in c.tokens.items()} for c in (a, b)]
    return (
        plain[0] == plain[1]
        and numbers[0].keys() == numbers[1].keys()
        and all(torch.equal(t, numbers[1][k]) for k, t in numbers[0].items())
    )


def read(file) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(file, "pt") as f:
        return {key: f.get_tensor(key) for key in f.keys()}, f.metadata()  # noqa: SIM118


def sealed(state: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """A file with a checksum that says it was meant to be so."""
    return save(state, metadata | {"cidm.sha256": checksum(metadata, state)})


@pytest.mark.parametrize("seal", [False, True], ids=["as damaged", "with a new checksum"])
def test_a_damaged_file_is_refused_by_name_or_is_what_was_written(tmp_path, monkeypatch, seal):
    monkeypatch.setattr(files.os, "fsync", lambda _: None)  # for speed
    folder, file = tmp_path / "bank", tmp_path / "bank" / "dog.safetensors"
    save_concept(WRITTEN, file)
    data, refused = file.read_bytes(), 0
    state, metadata = read(file)
    assert same(load_concept(file), WRITTEN)
    for i in range(COUNT // 2):
        draw = random.Random(i)
        damage = draw.choice(DAMAGE[6:] if seal else DAMAGE)
        own = {key: tensor.clone() for key, tensor in state.items()}
        file.write_bytes(damage(data, own, dict(metadata), draw, sealed if seal else save))
        bank = Bank(folder)
        try:
            back = bank.get("dog")
        except ValueError as error:
            assert "dog.safetensors" in str(error) and len(str(error)) < 2000, f"file {i}, {damage.__name__}: {error}"
            refused += 1
            continue
        if not seal:
            assert same(back, WRITTEN), f"file {i}, {damage.__name__}, is not what was written"
            continue
        assert all(t.isfinite().all() for f in back.all_factors.values() for t in (f.up.float(), f.down.float())), f"file {i}"
        bank.read("a <dog>")
        rows = back.tokens["clip_l"]
        assert len(rows) == len(back.words) and max(back.token_layers, default=0) < rows.shape[1], f"file {i}, {damage.__name__}"
        save_concept(back, tmp_path / "again.safetensors")
    assert refused > COUNT // 4


@pytest.mark.parametrize(
    "key, value",
    [
        ("words", ["<dog.1>"]),
        ("token_shapes", {}),
        ("token_layers", [0, 1, 3]),
        ("token_layers", [True]),
        ("format", float("inf")),
        ("task", True),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path, key, value):
    file = tmp_path / "dog.safetensors"
    save_concept(WRITTEN, file)
    state, metadata = read(file)
    file.write_bytes(sealed(state, metadata | {"cidm": json.dumps(json.loads(metadata["cidm"]) | {key: value})}))
    with pytest.raises(ValueError, match=r"^dog\.safetensors: damaged"):
        load_concept(file)
