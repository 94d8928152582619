"""A compressed bank whose checksum is right and whose table is not: named with its field, and nothing is written."""

import json
import random
import zlib

import pytest
import torch
from safetensors import safe_open
from test_manage import small

from cidm_ops.__main__ import main
from cidm_ops.bank import files, manage
from cidm_ops.bank.archive import compress_bank, expand_into, save_compressed
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.compress import compress
from cidm_ops.bank.concept_file import checksum
from cidm_ops.bank.formats import packed

COUNT = 600
VALUES = (
    None,
    True,
    -1,
    0,
    7,
    2**70,
    1e308,
    float("nan"),
    "",
    "x",
    "../up",
    [],
    [1],
    [[]],
    [-1, 4],
    ["<ant.1>"],
    {},
    {"a": 1},
    [["l", 3]],
    [0, 0],
)


@pytest.fixture
def archive(tmp_path):
    file = tmp_path / "x.compressed.safetensors"
    residuals = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_v": torch.ones(3)}
    infusion = small("cow", words=(), factors={}, tokens={}, residuals=residuals, preview=b"jpeg", about={"author": "Me"})
    save_compressed(compress([small("ant"), small("bee", token_layers=(0, 2, 1)), infusion]), file)
    return file


def content(file):
    with safe_open(file, "pt") as f:
        state, metadata = {key: f.get_tensor(key) for key in f.keys()}, f.metadata()  # noqa: SIM118
    return state, json.loads(metadata["cidm.bank"]), json.loads(zlib.decompress(state["table"].numpy().tobytes()))


def seal(file, state, header, table) -> None:
    state = state | {"table": torch.frombuffer(bytearray(zlib.compress(json.dumps(table).encode())), dtype=torch.uint8)}
    metadata = {"cidm.bank": json.dumps(header)}
    file.write_bytes(packed(state, metadata | {"cidm.sha256": checksum({"cidm": metadata["cidm.bank"]}, state)}))


@pytest.mark.parametrize(
    "field, value",
    [
        ("training", [1]),
        ("task", "x"),
        ("factors", [["layer", [-1, 4], [4, 6], []]]),
        ("factors", [[1, [8, 2], [2, 6], []]]),
        ("words", ["<ant.1>"]),
        ("tokens", {"clip_l": [2, 3, 2**60]}),
        ("tokens", {}),
        ("token_layers", [9]),
        ("preview", 10**12),
        ("about", {"author": 1}),
        ("name", "../up"),
        ("residuals", [["layer", 0]]),
        ("error", "small"),
        ("class_word", None),
    ],
)
def test_a_field_of_a_wrong_type_is_named_and_nothing_is_written(archive, tmp_path, capsys, field, value):
    state, header, table = content(archive)
    table[0][field] = value
    seal(archive, state, header, table)
    assert main(["bank", "expand", str(archive), str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("cidm: x.compressed.safetensors: damaged compressed bank") and err.count("\n") == 1
    assert field in err or field in ("tokens", "preview")
    assert not (tmp_path / "out").exists()


def test_whatever_is_in_a_table_it_is_refused_by_name_or_all_of_it_is_whole(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", lambda _: None)  # for speed
    state, header, table = content(archive)
    text, refused = json.dumps([header, table]), 0
    for i in range(COUNT):
        draw = random.Random(i)
        own_state, (own_header, own_table) = dict(state), json.loads(text)
        entry = draw.choice([*own_table, *own_table, own_header])
        key = draw.choice(sorted(entry))
        how = draw.random()
        if how < 0.15:
            del entry[key]
        elif how < 0.3 and isinstance(entry[key], list) and entry[key] and isinstance(entry[key][0], list):
            part = draw.choice(entry[key])
            part[draw.randrange(len(part))] = draw.choice(VALUES)
        elif how < 0.4:
            name = draw.choice(sorted(own_state))
            damage = [lambda t: t[:-1], lambda t: t.to(torch.int32), lambda t: t[None], lambda t: t[:0], lambda t: t.float() * float("nan")]
            own_state[name] = draw.choice(damage)(own_state[name]).contiguous()
        else:
            entry[key] = draw.choice(VALUES)
        file, out = tmp_path / f"{i}.safetensors", tmp_path / f"out{i}"
        seal(file, own_state, own_header, draw.choice(VALUES) if how > 0.98 else own_table)
        try:
            bank = expand_into(file, out)
        except ValueError as error:
            assert str(error).startswith(file.name) and len(str(error)) < 500 and not out.exists(), f"{i}: {error}"
            refused += 1
        else:
            assert not bank.damaged and not any(manage.verify(bank).values()), f"{i}: {key} = {entry.get(key)}"
        file.unlink()
    assert COUNT // 2 < refused < COUNT


def test_a_table_that_unzips_without_end_is_refused(archive, tmp_path):
    state, header, _ = content(archive)
    for data in (b"[" * 10**6, b"[" + b"1," * (1 << 20), b"0" * 1000):
        seal(archive, state, header, [])
        bomb = torch.frombuffer(bytearray(zlib.compress(data)), dtype=torch.uint8)
        metadata = {"cidm.bank": json.dumps(header)}
        sealed = state | {"table": bomb}
        archive.write_bytes(packed(sealed, metadata | {"cidm.sha256": checksum({"cidm": metadata["cidm.bank"]}, sealed)}))
        with pytest.raises(ValueError, match=r"^x\.compressed\.safetensors: damaged"):
            expand_into(archive, tmp_path / "out")


def test_what_is_no_compressed_bank_is_never_replaced_by_one(tmp_path):
    bank, photo = Bank(tmp_path / "bank").add(small("ant")), tmp_path / "photo.png"
    photo.write_bytes(b"a person's own")
    for file in (photo, bank.file("ant")):
        before = file.read_bytes()
        with pytest.raises(ValueError, match="is there and was made otherwise: remove it, or choose another place"):
            compress_bank(bank, file)
        assert file.read_bytes() == before
    assert compress_bank(bank)[0] == compress_bank(bank)[0], "one of ours is made anew"
