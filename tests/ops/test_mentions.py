"""What a prompt mentions: a handle is read, and what looks like one and is none is named with what was probably meant."""

import random
import time

import pytest
from test_manage import filled, small

from cidm_ops.bank.bank import Bank

PIECES = (
    "<", ">", "<x", "x>", "<x>", "<x:", ":0.8>", ":0,8", "<dog.1>", "<X>", "(", ")", "[", "]", ":1.2)", ":", "-", "+", ".", ",", " ",
    "a", "dog", "red hat", "RED HAT", "< ", " >", "0.8", "3", "\xe9", "\u0130", "\uff1c", "\uff1e", "<lora:y:1>", "<3", "->",
    "\n", "\\", "{", "|",
)  # fmt: skip


@pytest.fixture
def bank(tmp_path) -> Bank:
    return filled(tmp_path / "bank", "x", "dog").add(small("foreign", words=(), tokens={}, triggers=("red hat",)))


@pytest.mark.parametrize(
    "written, meant",
    [
        ("<x: 0.8>", "<x:0.8>"),
        ("<x:0,8>", "<x:0.8>"),
        ("<x:+0.8>", "<x:0.8>"),
        ("< x >", "<x>"),
        ("<x >", "<x>"),
        ("<x:>", "<x>"),
        ("<x 0.8>", "<x:0.8>"),
        ("<x:.8.>", "<x:.8>"),
        ("<x>:0,8", "<x:0.8>"),
        ("<x>:+0.8", "<x:0.8>"),
        ("<x>:0.8x", "<x>"),
        ("<dog:x>", "<dog>"),
        ("<Dog>", "<dog>"),
        ("<DOG:0.5>", "<dog>"),
        ("<Dog.1>", "<dog.1>"),
        ("<dgo>", "<dog>"),
        ("<dog:1e1>", "<dog>"),
        ("<my dog>", "<dog>"),
        ("<dog", "<dog>"),
        ("<dog: 0.8", "<dog:0.8>"),
        ("dog>", "<dog>"),
        ("< dog", "<dog>"),
        ("<-dog>", "<dog>"),
        ("\uff1cdog\uff1e", "<dog>"),
        ("\u2039dog\u203a", "<dog>"),
    ],
)
def test_what_looks_like_a_handle_is_refused_with_what_was_meant(bank, written, meant):
    for prompt in (written, f"a photo of {written} in snow", f"({written}, 1girl:1.2)", f"a <dog> and {written}."):
        with pytest.raises(ValueError, match="did you mean") as refused:
            bank.read(prompt)
        assert f"did you mean {meant}?" in str(refused.value)
        assert "".join(text for text, _ in bank.vocabulary.parts(prompt)) == prompt
        assert "" in [owner for _, owner in bank.vocabulary.parts(prompt)], "the preview shows it as what would be refused"


@pytest.mark.parametrize("written", ["<cow>", "<cow: 0.8>", "< cow >", "<cow", "<big red cow>", "<\u72ac>", "\uff1ccow\uff1e"])
def test_what_looks_like_the_handle_of_no_concept_is_refused_with_those_there_are(bank, written):
    with pytest.raises(ValueError, match="no concept has the word .*<x>, <dog>") as refused:
        bank.read(f"a {written} in snow")
    assert written in str(refused.value) and "did you mean" not in str(refused.value)


@pytest.mark.parametrize(
    "prompt",
    [
        "I <3 you",
        "a < b",
        "->",
        "<",
        "a <",
        ">.<",
        "<>",
        "5 > 3",
        "<|endoftext|>",
        "a -> b <- c",
        "x<y",
        "<3 hearts > 2",
        "<lora:dog:0.7> a",
    ],
)
def test_a_bracket_that_is_no_handle_is_text(bank, prompt):
    assert (bank.read(prompt).text, bank.read(prompt).strengths) == (prompt, {})
    assert bank.vocabulary.parts(prompt) == [(prompt, None)]


def test_a_strength_is_read_as_it_is_written(bank):
    for written, strength in {"<dog:0.8>": 0.8, "<dog>:0.8": 0.8, "<dog:-1>": -1, "<dog:.5>": 0.5, "<dog:0>": 0, "<dog>:1, big": 1}.items():
        assert bank.read(f"a {written}").strengths == {"dog": strength}
    said = bank.read("(<dog>:1.2), (a <x:0.5>:0.9)")
    assert said.strengths == {"x": 0.5, "dog": 1.0} and said.text == "(<dog.1> <dog.2>:1.2), (a <x.1> <x.2>:0.9)"
    for written, said in {"<dog:0.5>:0.8": "two strengths", f"<dog:{'9' * 400}>": "no finite number", "<dog:0.5> <dog:1>": "two"}.items():
        with pytest.raises(ValueError, match=said):
            bank.read(f"a {written}")


def test_of_any_prompt_all_is_read_or_named_and_its_parts_are_the_prompt(bank):
    silent, refused = [], 0
    for seed in range(40_000):
        draw = random.Random(seed)
        prompt = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 9)))
        parts = bank.vocabulary.parts(prompt)
        assert "".join(text for text, _ in parts) == prompt
        try:
            bank.read(prompt)
            silent += [prompt] if any(owner == "" for _, owner in parts) else []
        except ValueError as error:
            assert "strengths" in str(error) or "" in [owner for _, owner in parts], f"{prompt!r}: {error}"
            assert len(str(error)) < 400
            refused += 1
    assert not silent and 5_000 < refused < 35_000


@pytest.mark.parametrize("unit", ["<", "<x", "x>", "a-", "<x:", "< x ", "<x>:0,8 ", "red hat ", "<x> "])
def test_a_prompt_of_any_length_is_read_without_a_hang(bank, unit):
    prompt, began = unit * (100_000 // len(unit)), time.process_time()
    bank.vocabulary.parts(prompt)
    try:
        bank.read(prompt)
    except ValueError as error:
        assert len(str(error)) < 400
    assert time.process_time() - began < 20, "work that grows with the square of the length takes minutes"
