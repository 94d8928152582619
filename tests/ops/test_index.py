"""The index of a bank: the files are the truth, whatever the index says."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from test_manage import LAYER, filled, small

from cidm_ops.bank import files
from cidm_ops.bank import index as index_file
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept_file import save_concept
from cidm_ops.bank.header import read_header
from cidm_ops.bank.index import INDEX


@pytest.fixture
def bank(tmp_path) -> Bank:
    return filled(tmp_path / "bank", "ant", "bee", "cow")


def spoil(bank: Bank, change) -> Bank:
    """The bank opened after ``change`` was done to the entries of its index."""
    file = bank.folder / INDEX
    index = json.loads(file.read_text())
    change(index["concepts"])
    file.write_text(json.dumps(index))
    return Bank(bank.folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"format": 1}', '{"format": 99, "concepts": {}}', '{"format": 1, "concepts": [1]}', "[" * 100000, "\x00"],
    ids=range(10),
)
def test_a_missing_or_damaged_index_costs_nothing_but_time(bank, text):
    (bank.folder / INDEX).write_text(text)
    assert Bank(bank.folder).headers == bank.headers
    assert set(index_file.read_index(bank.folder)) == {"ant.safetensors", "bee.safetensors", "cow.safetensors"}
    (bank.folder / INDEX).unlink()
    assert Bank(bank.folder).headers == bank.headers


@pytest.mark.parametrize(
    "key, value", [("task", "2"), ("task", True), ("words", None), ("words", [1]), ("name", "../x"), ("training", []), ("triggers", "x")]
)
def test_an_entry_of_wrong_types_is_read_from_the_file(bank, key, value):
    opened = spoil(bank, lambda entries: entries["bee.safetensors"]["header"].update({key: value}))
    assert opened.headers == bank.headers and opened.read("a <bee>").text == "a <bee.1> <bee.2>"


@pytest.mark.parametrize("entry", [None, 3, {}, {"header": None}, {"stamp": 1, "header": {}}], ids=str)
def test_an_entry_that_is_none_is_read_from_the_file(bank, entry):
    assert spoil(bank, lambda entries: entries.update({"bee.safetensors": entry})).headers == bank.headers


def test_entries_too_many_and_too_few(bank):
    assert spoil(bank, lambda e: e.update({"elk.safetensors": e["ant.safetensors"]})).names == ["ant", "bee", "cow"]
    assert spoil(bank, lambda e: e.pop("bee.safetensors")).names == ["ant", "bee", "cow"]
    bank.file("bee").unlink()
    assert Bank(bank.folder).names == ["ant", "cow"]
    assert set(index_file.read_index(bank.folder)) == {"ant.safetensors", "cow.safetensors"}


def test_a_file_replaced_by_hand_is_seen(bank):
    old = bank.file("bee").stat()
    save_concept(small("bee", class_word="cat", task=9), bank.file("bee"))
    os.utime(bank.file("bee"), ns=(old.st_atime_ns, old.st_mtime_ns))
    assert bank.file("bee").stat().st_size == old.st_size, "of the same size and time"
    assert Bank(bank.folder).names == ["ant", "cow", "bee"] and Bank(bank.folder).headers["bee"]["class_word"] == "cat"
    shutil.copy(bank.file("ant"), bank.folder / "copy.safetensors")
    assert "copy" in Bank(bank.folder).names
    bank.file("cow").write_bytes(b"broken")
    assert list(Bank(bank.folder).damaged) == ["cow"]


def test_a_file_renamed_by_hand_answers_to_its_new_name(bank):
    bank.file("bee").rename(bank.file("wasp"))
    opened = Bank(bank.folder)
    assert opened.get("wasp").name == "wasp" and opened.read("<wasp>").strengths == {"wasp": 1.0}
    assert opened.read("<wasp>").text == "<bee.1> <bee.2>"


def test_a_thousand_concepts_open_from_the_index_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", lambda _: None)  # for speed
    one = small("c0")
    for i in range(1000):
        save_concept(replace(one, name=f"c{i}", words=(f"<c{i}.1>", f"<c{i}.2>"), task=i + 1), tmp_path / f"c{i}.safetensors")
    first = Bank(tmp_path)
    read = []
    monkeypatch.setattr(index_file, "read_header", lambda file: read.append(file.name) or read_header(file))
    again = Bank(tmp_path)
    assert again.headers == first.headers and len(again.names) == 1000 and again.names[-1] == "c999" and read == []
    save_concept(replace(one, name="c5", words=("<c5.1>", "<c5.2>"), task=2000), tmp_path / "c5.safetensors")
    assert Bank(tmp_path).names[-1] == "c5" and read == ["c5.safetensors"]
    assert again.get("c7").factors[LAYER].rank == 2
