"""Concept files and banks: what is written comes back, what is damaged is named, the rest stays usable."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cidm_ops.bank.bank import Bank, check_base
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.concept_file import load_concept, save_concept
from cidm_ops.lowrank import LowRank

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"


def concept(name: str, architecture: str = "sd1-7x160") -> Concept:
    torch.manual_seed(len(name))
    factors = {LAYER: LowRank(torch.randn(8, 4), torch.randn(4, 6))}
    return Concept(
        name=name,
        class_word="dog",
        words=(f"<{name}.1>", f"<{name}.2>"),
        factors=factors,
        tokens={"clip_l": torch.randn(2, 7, 128)},
        architecture=architecture,
        fingerprint="abc",
        training={"steps": 3},
    )


def test_a_concept_comes_back_as_it_was(tmp_path):
    file = tmp_path / "dog.safetensors"
    save_concept(concept("dog"), file)
    back = load_concept(file)
    assert torch.equal(back.tokens["clip_l"], concept("dog").tokens["clip_l"])
    assert torch.equal(back.factors[LAYER].up, concept("dog").factors[LAYER].up)
    assert replace(back, factors={}, tokens={}) == replace(concept("dog"), factors={}, tokens={})


def test_to_other_tools_it_is_a_lora_with_alpha_equal_to_rank(tmp_path):
    save_concept(concept("dog"), tmp_path / "dog.safetensors")
    with safe_open(tmp_path / "dog.safetensors", "pt") as f:
        key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q"
        assert set(f.keys()) == {f"{key}.lora_up.weight", f"{key}.lora_down.weight", f"{key}.alpha"}
        assert f.get_tensor(f"{key}.alpha") == 4


def test_a_bank_keeps_the_order_learned_and_replaces_in_place(tmp_path):
    bank = Bank(tmp_path)
    for name in ("zebra", "ant", "moth"):
        bank = bank.add(concept(name))
    bank = bank.add(concept("ant"))
    assert bank.names == ["zebra", "ant", "moth"]
    assert [bank.get(n).task for n in bank.names] == [1, 2, 3]
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_handles_stand_for_all_words_of_a_concept(tmp_path):
    bank = Bank(tmp_path).add(concept("dog")).add(concept("dog2"))
    assert bank.read("my <dog> and (<dog2>:1.2)").text == "my <dog.1> <dog.2> and (<dog2.1> <dog2.2>:1.2)"
    assert bank.read("a <dog2.1> <dog2.2>").strengths == {"dog2": 1.0}


def test_an_unknown_word_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no concept has the word <cow>.*<dog>"):
        Bank(tmp_path).add(concept("dog")).read("a <cow>")


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other", "nan"])
def test_a_damaged_file_is_named_and_the_rest_stays_usable(tmp_path, damage):
    bank = Bank(tmp_path).add(concept("good")).add(concept("bad"))
    file = bank.file("bad")
    data = file.read_bytes()
    if damage == "nan":
        broken = concept("bad")
        broken.factors[LAYER].up[0, 0] = float("nan")
        save_concept(broken, file)
    elif damage == "other":
        save_file({"x": torch.zeros(1)}, file)
    else:
        file.write_bytes({"cut": data[:-100], "empty": b"", "text": b"hello" * 50}[damage])
    bank = Bank(tmp_path)
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        bank.get("bad")
    assert bank.get("good").name == "good"
    assert "good" in bank.read("a <good>").strengths


def test_architectures_do_not_mix_and_another_checkpoint_is_told(tmp_path):
    bank = Bank(tmp_path).add(concept("dog"))
    with pytest.raises(ValueError, match="sd1-16x768.*sd1-7x160"):
        bank.add(concept("cat", "sd1-16x768"))
    assert bank.names == ["dog"]
    with pytest.raises(ValueError, match="learned on sd1-7x160"):
        check_base(bank.headers["dog"], "sd1-16x768", "abc")
    assert "another checkpoint" in (check_base(bank.headers["dog"], "sd1-7x160", "xyz") or "")
    assert check_base(bank.headers["dog"], "sd1-7x160", "abc") is None


@pytest.mark.parametrize("name", ["", "a/b", "../up", "x" * 65, "<dog>", "-dog"])
def test_names_that_cannot_be_files_or_handles_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="concept name"):
        Bank(tmp_path).add(replace(concept("dog"), name=name))


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_writer_killed_at_any_instant_leaves_a_whole_bank(tmp_path):
    Bank(tmp_path).add(concept("dog"))
    for delay in (0.0, 0.005, 0.02):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    Bank(tmp_path).add(concept("dog"))
            finally:
                os._exit(0)
        time.sleep(0.02 + delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        bank = Bank(tmp_path)
        assert bank.names == ["dog"] and not bank.damaged
        assert bank.get("dog").tokens["clip_l"].isfinite().all()
