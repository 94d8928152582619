"""What the text of a prompt costs: new, with another strength, repeated, and soft in a bank of a thousand; and how a command begins.

On Doodle as it ships and on SD1.5 of full size with random weights. The limit of a text is a plain one, encoded once for all layers.
"""

import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from ...bank.bank import Bank
from ...bank.concept import Concept
from ...bank.concept_file import save_concept
from ...doodle.files import TEN
from ...engines.diffusers import DiffusersBackbone, load
from ...method.aggregation import spoken_as
from ...models.sd import SD1
from ...painting.compose import AggregationConfig, compose, encode
from ...painting.texts import CONCEPTS, TEXTS, WORDS, kept_words
from ...tokens import encode_layerwise
from .models import random_backbone
from .timing import figures, interleave, machine, ratio

COUNT = 1000
SOFT = AggregationConfig(mode="soft")
WHERE = "in the snow, number {}"


def run(rounds: int = 9) -> dict[str, Any]:
    """``<base>_plain`` is a text without concepts, ``_new`` a prompt with one that was not there before, ``_strength`` the same prompt with
    another strength, ``_repeated`` the same again; ``_new_ratio`` is by plain encodings. ``soft_first`` is the first prompt in a bank of a
    thousand, files and all, ``soft_second`` another one; ``words_ratio`` is what its words cost beside encoding each in a whole text.
    ``help`` and ``list`` are `cidm --help` and `cidm bank list` beside a bare ``python`` and ``import torch``.
    """
    found: dict[str, Any] = commands(rounds)
    doodle = load("doodle")
    with tempfile.TemporaryDirectory() as folder:
        bank = thousand(Path(folder) / "bank")
        found |= soft(doodle, bank, rounds)
        found |= texts("doodle", doodle, bank, rounds)
        with torch.no_grad():
            found |= texts("sd15", random_backbone(SD1), one_of_sd15(Path(folder) / "sd15"), rounds)
    return found | {"concepts": COUNT, "rounds": rounds} | machine()


def thousand(folder: Path) -> Bank:
    """A bank of a thousand: the ten that ship, each under a hundred names."""
    ten = Bank(TEN).concepts()
    for i in range(COUNT):
        concept = ten[i % len(ten)]
        words = tuple(f"<c{i}.{n}>" for n in range(1, 1 + len(concept.words)))
        save_concept(replace(concept, name=f"c{i}", words=words, task=i + 1), folder / f"c{i}.safetensors")
    return Bank(folder)


def one_of_sd15(folder: Path) -> Bank:
    """A bank for SD1.5 with one concept of two words whose rows are random, one for each of the 16 layers."""
    rows = torch.randn(2, 16, 768, generator=torch.Generator().manual_seed(0)) * 0.02
    words = ("<c1.1>", "<c1.2>")
    made = Concept(name="c1", class_word="dog", architecture="sd1-16x768", words=words, tokens={SD1.encoder().name: rows})
    save_concept(made, folder / "c1.safetensors")
    return Bank(folder)


def texts(base: str, backbone: DiffusersBackbone, bank: Bank, rounds: int) -> dict[str, Any]:
    """A prompt with one concept: new, with another strength, and repeated, beside a plain text."""
    number, last = count(), 0

    def painted(prompt: str) -> None:
        encode(backbone, compose(backbone, bank, prompt))

    def new() -> None:
        nonlocal last
        last = next(number)
        painted(f"a <c1> {WHERE.format(last)}")

    sides = {
        "plain": lambda: encode_layerwise(backbone, [f"a dog {WHERE.format(0)}"], {}),
        "new": new,
        "strength": lambda: painted(f"a <c1:0.8> {WHERE.format(last)}"),
        "repeated": lambda: painted(f"a <c1> {WHERE.format(last)}"),
    }
    with torch.no_grad():
        times = interleave(sides, rounds)
    found = {f"{base}_{name}": value for name, value in figures(times).items()}
    return found | {f"{base}_{side}_ratio": ratio(times, side, "plain") for side in ("new", "strength", "repeated")}


def soft(backbone: DiffusersBackbone, bank: Bank, rounds: int) -> dict[str, Any]:
    """Soft routing in a large bank: the first prompt, another one, and words encoded up to the last of them or in a whole text."""
    number, some = count(), [bank.get(name) for name in bank.names[:10]]

    def first() -> None:
        for kept in (TEXTS, WORDS, CONCEPTS):
            kept.clear()
        compose(backbone, bank, "a <c1> on the beach", SOFT)

    def whole() -> None:
        for concept in some:
            encode_layerwise(backbone, [f"a {spoken_as(concept)}"], concept.tables)

    def words() -> None:
        WORDS.clear()
        kept_words(backbone, some)

    with torch.no_grad():
        beginning = interleave({"whole": whole, "words": words}, rounds)
        begun = interleave({"first": first}, 1, warmup=0)
        times = interleave({"second": lambda: compose(backbone, bank, f"a <c2> and a <c3> {WHERE.format(next(number))}", SOFT)}, rounds)
    return {f"soft_{name}": value for name, value in figures(begun | times).items()} | {"words_ratio": ratio(beginning, "words", "whole")}


def commands(rounds: int) -> dict[str, Any]:
    """How long commands take from the shell to their end."""

    def call(*argv: str) -> None:
        subprocess.run([sys.executable, *argv], capture_output=True, check=True)

    sides = {
        "python": lambda: call("-c", "pass"),
        "help": lambda: call("-m", "cidm_ops", "--help"),
        "list": lambda: call("-m", "cidm_ops", "bank", "list", str(TEN)),
        "torch": lambda: call("-c", "import torch"),
    }
    return figures(interleave(sides, rounds))
