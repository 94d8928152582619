"""Names that differ in case only are one file on Windows and macOS: a bank takes the first and refuses the second by name."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_manage import filled, small

from cidm_ops.__main__ import main
from cidm_ops.bank import manage
from cidm_ops.bank.archive import expand_into, save_compressed
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.compress import compress
from cidm_ops.bank.concept_file import save_concept
from cidm_ops.bank.exchange import import_into

SAID = "differs from it in case only, which is the same file on Windows and macOS: choose another name"


def with_both(folder) -> Bank:
    """A bank as an earlier version could make it, on a disk that tells the two apart."""
    bank = filled(folder, "dog", "ant")
    save_concept(small("Dog", task=3), bank.file("Dog"))
    return Bank(folder)


def test_the_second_name_is_refused_wherever_it_could_come_in(tmp_path):
    bank = filled(tmp_path / "bank", "dog", "ant")
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "DOG.safetensors")
    other = filled(tmp_path / "other", "Dog")
    before = {file.name: file.read_bytes() for file in bank.folder.glob("*.safetensors")}
    for attempt in (
        lambda: bank.add(small("Dog")),
        lambda: bank.before("Dog"),
        lambda: manage.rename(bank, "ant", "DOG"),
        lambda: manage.merge(bank, other),
        lambda: manage.merge(bank, other, "skip"),
        lambda: manage.merge(bank, other, "replace"),
        lambda: import_into(filled(tmp_path / "sd", "cat").add(small("dog")), other.file("Dog")),
    ):
        with pytest.raises(ValueError, match=f"has a concept 'dog', and 'D(og|OG)' {SAID}"):
            attempt()
    assert {file.name: file.read_bytes() for file in bank.folder.glob("*.safetensors")} == before


def test_a_file_that_is_damaged_keeps_its_name_too(tmp_path):
    bank = filled(tmp_path, "dog")
    bank.file("dog").write_bytes(b"broken")
    with pytest.raises(ValueError, match=SAID):
        bank.add(small("Dog"))


def test_two_such_names_do_not_come_in_together(tmp_path):
    with pytest.raises(ValueError, match=SAID):
        manage.merge(Bank(tmp_path / "new"), with_both(tmp_path / "old"))
    assert Bank(tmp_path / "new").names == []


def test_an_old_bank_with_both_is_read_kept_and_verified_with_what_to_do(tmp_path, capsys):
    bank = with_both(tmp_path / "bank")
    assert bank.read("a <dog> and a <Dog:0.5>").strengths == {"dog": 1.0, "Dog": 0.5} and len(bank.concepts()) == 3
    bank = manage.describe(manage.move(bank, "Dog", 1), "dog", {"author": "Me"}).add(replace(small("Dog"), class_word="cat"))
    found = manage.verify(bank)
    assert "'Dog' in case only" in found["dog"] and "'dog' in case only" in found["Dog"] and found["ant"] == ""
    assert main(["bank", "verify", str(bank.folder)]) == 2 and "rename one" in capsys.readouterr().out
    bank = manage.rename(bank, "Dog", "hound")
    assert not any(manage.verify(bank).values()) and bank.names == ["hound", "dog", "ant"]


def test_a_name_can_change_its_case(tmp_path):
    bank = manage.rename(filled(tmp_path, "dog"), "dog", "Dog")
    assert bank.names == ["Dog"] and bank.read("a <Dog>").text == "a <Dog.1> <Dog.2>"


def test_an_old_archive_with_both_is_expanded_where_the_disk_tells_them_apart(tmp_path):
    save_compressed(compress([small("dog"), small("Dog", 1)]), tmp_path / "x.safetensors")
    (tmp_path / "probe").write_text("")
    if (tmp_path / "PROBE").exists():
        with pytest.raises(ValueError, match="'dog' and 'Dog' differ in case only"):
            expand_into(tmp_path / "x.safetensors", tmp_path / "out")
    else:
        assert len(expand_into(tmp_path / "x.safetensors", tmp_path / "out").names) == 2


def test_words_that_add_takes_are_those_that_verify_takes(tmp_path):
    bank = filled(tmp_path, "dog").add(small("cat", words=("<Dog.1>", "<cat.2>"), triggers=("Purr",)))
    assert not any(manage.verify(bank).values())
    with pytest.raises(ValueError, match="purr belongs to concept 'cat'"):
        bank.add(small("cow", triggers=("PURR",)))
