"""A text is encoded once as long as nothing changes that it depends on, and what is looked up is what would be computed, bit for bit."""

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cidm_ops.adapters import attach
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept_file import load_concept
from cidm_ops.causal import AFTER_LAYER, linear_layers
from cidm_ops.doodle.files import TEN
from cidm_ops.engines.diffusers import DiffusersBackbone, load
from cidm_ops.lowrank import LowRank
from cidm_ops.painting import texts
from cidm_ops.painting.compose import AggregationConfig, compose, encode
from cidm_ops.painting.texts import CONCEPTS, STATES, TEXTS, WORDS, kept_concept, kept_text, kept_words, show_encoding
from cidm_ops.tokens import encode_layerwise

SOFT = AggregationConfig(mode="soft")


def forget() -> None:
    for kept in (TEXTS, WORDS, STATES, CONCEPTS):
        kept.clear()


@pytest.fixture
def backbone() -> Iterator[DiffusersBackbone]:
    forget()
    yield load("doodle")
    forget()


@pytest.fixture
def bank(tmp_path) -> Bank:
    return Bank(shutil.copytree(TEN, tmp_path / "ten", ignore=shutil.ignore_patterns("index.json")))


@contextmanager
def counted() -> Iterator[list[tuple[int, int]]]:
    """The layers that texts go through while this is open, as progress tells them."""
    told: list[tuple[int, int]] = []
    with show_encoding(lambda done, count: told.append((done, count))):
        yield told


def painted(backbone: DiffusersBackbone, bank: Bank, prompt: str):
    return encode(backbone, compose(backbone, bank, prompt))


def same(one, other) -> bool:
    return torch.equal(one.states, other.states) and one.layers == other.layers


def test_another_strength_and_a_repeated_prompt_encode_nothing(backbone, bank):
    with counted() as told:
        first = painted(backbone, bank, "a <dog> in the snow")
    assert told and told[-1][0] == told[-1][1]
    with counted() as told:
        weaker = painted(backbone, bank, "a <dog:0.8> in the snow")
        again = painted(backbone, bank, "a <dog> in the snow")
    assert told == [] and same(weaker, first) and same(again, first)
    forget()
    assert same(painted(backbone, bank, "a <dog:0.8> in the snow"), first), "computed anew it is the same, bit for bit"


def test_another_prompt_is_another_text(backbone, bank):
    one, other = (painted(backbone, bank, prompt) for prompt in ("a <dog> in the snow", "a <cat> in the snow"))
    assert not torch.equal(one.states, other.states)


def test_a_concept_that_was_learned_anew_is_another_text(backbone, bank):
    first, dog = painted(backbone, bank, "a <dog>"), kept_concept(bank, "dog")
    assert kept_concept(bank, "dog") is dog, "its file is the same, and read once"
    bank = bank.add(replace(dog, tokens={encoder: rows + 0.1 for encoder, rows in dog.tokens.items()}))
    changed = painted(backbone, bank, "a <dog>")
    assert not torch.equal(changed.states, first.states)
    forget()
    assert same(painted(backbone, bank, "a <dog>"), changed)


def test_a_text_encoder_that_changed_encodes_anew(backbone, bank):
    first = painted(backbone, bank, "a <dog>").states
    layer = next(iter(linear_layers(backbone.texts).values()))
    layer.weight = nn.Parameter(layer.weight * 1.5, requires_grad=False)
    second = painted(backbone, bank, "a <dog>").states
    layer.weight.mul_(1.5)
    third = painted(backbone, bank, "a <dog>").states
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_what_hooks_do_to_a_text_encoder_is_not_kept(backbone):
    plain = kept_text(backbone, "a dog").states
    name, layer = next(iter(linear_layers(backbone.texts).items()))
    delta = LowRank(torch.ones(layer.out_features, 1), torch.ones(1, layer.in_features))
    with attach(linear_layers(backbone.texts), {name: delta}):
        assert not torch.equal(kept_text(backbone, "a dog").states, plain)
    assert torch.equal(kept_text(backbone, "a dog").states, plain)


def test_a_strength_counts_where_a_concept_changes_the_text_encoder(backbone, bank):
    name, layer = next(iter(linear_layers(backbone.texts).items()))
    delta = LowRank(torch.randn(layer.out_features, 2), torch.randn(2, layer.in_features))
    dog = replace(bank.get("dog"), text_factors={name: delta})
    prompt = " ".join(dog.words)
    full, half = (kept_text(backbone, prompt, [dog], {"dog": strength}) for strength in (1.0, 0.5))
    assert not torch.equal(full.states, half.states)
    assert same(kept_text(backbone, prompt, [dog], {"dog": 1.0}), full)
    forget()
    assert same(kept_text(backbone, prompt, [dog], {"dog": 0.5}), half)


def test_autocast_has_texts_of_its_own(backbone):
    plain = kept_text(backbone, "a dog").states
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(kept_text(backbone, "a dog").states, plain)
    assert torch.equal(kept_text(backbone, "a dog").states, plain)


def test_as_many_layers_read_a_kept_text_as_the_model_has(backbone):
    text = copy(backbone)
    text.cross_attention = {}  # as where a text encoder has no model beside it
    assert [len(kept_text(b, "a dog").layers) for b in (backbone, text, backbone)] == [7, 1, 7]
    plain = replace(load_concept(TEN / "dog.safetensors"), words=(), tokens={})
    assert [len(kept_words(b, [plain])[0]) for b in (backbone, text, backbone)] == [7, 1, 7]


def test_what_was_kept_in_inference_mode_can_be_learned_with(backbone, bank):
    with torch.inference_mode():
        kept_text(backbone, "a dog")
        kept_words(backbone, [kept_concept(bank, "dog")])
    found = [kept_text(backbone, "a dog").states, *kept_words(backbone, [kept_concept(bank, "dog")])]
    assert not any(states.is_inference() for states in found)


def test_weights_that_count_no_changes_have_no_kept_texts(backbone):
    with torch.inference_mode():
        layer = next(iter(linear_layers(backbone.texts).values()))
        layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
        first = kept_text(backbone, "a dog").states
        layer.weight.mul_(1.5)
        assert not torch.equal(kept_text(backbone, "a dog").states, first)


def test_words_are_encoded_as_in_the_whole_text(backbone, bank):
    dog, teddy = bank.get("dog"), replace(bank.get("cat"), words=(), tokens={}, triggers=("fluffy cat",))
    for concept, said, length in ((dog, " ".join(dog.words), len(dog.words)), (teddy, "fluffy cat", 2)):
        whole = encode_layerwise(backbone, [f"a {said}"], concept.tables).context[0]
        [words] = kept_words(backbone, [concept])
        torch.testing.assert_close(words, whole[:, 2 : 2 + length], atol=1e-5, rtol=1e-5)


def test_a_second_prompt_encodes_no_word_of_the_bank_again(backbone, bank):
    layers: list[str] = []
    token = AFTER_LAYER.set(lambda: layers.append("words"))
    try:
        compose(backbone, bank, "a <dog> in the snow", SOFT)
        assert layers.count("words") > 0
        layers.clear()
        second = compose(backbone, bank, "a <cat> and a <duck>", SOFT)
        assert layers == [], "only the prompt itself is encoded"
    finally:
        AFTER_LAYER.reset(token)
    forget()
    assert torch.equal(compose(backbone, bank, "a <cat> and a <duck>", SOFT).weights, second.weights)


def test_what_is_kept_is_bounded(backbone, monkeypatch):
    monkeypatch.setattr(texts, "ROOM", kept_text(backbone, "a dog").states.nbytes * 3)
    forget()
    for i in range(6):
        kept_text(backbone, f"a dog {i}")
    assert len(next(iter(TEXTS.values())).results) == 3


def test_no_kept_text_keeps_a_model_alive():
    backbone = load("doodle")
    kept_text(backbone, "a dog")
    count = len(TEXTS)
    del backbone
    gc.collect()
    assert len(TEXTS) < count


def test_a_file_that_is_gone_is_told(bank):
    kept_concept(bank, "dog")
    Path(bank.file("dog")).unlink()
    with pytest.raises(KeyError, match="renamed or removed"):
        kept_concept(bank, "dog")
