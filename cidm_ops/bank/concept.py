"""One concept as data: low-rank factors and layer-wise token rows, or residuals at the class word."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..lowrank import LowRank
from ..tokens import Table
from .header import LOW_RANK, RESIDUALS


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A concept holds what was learned of it (the task learner Z_g of CIDM 3.1).

    ``factors`` maps canonical layer names to ``LowRank``; ``tokens`` maps the name of a text encoder to ``[k, R, D]``,
    R rows per word, and ``token_layers`` says which of them each cross-attention layer reads: its own, if it is empty.
    ``text_factors`` are those of the text encoders, if they learned. A LoRA that was learned elsewhere has no words and no tokens:
    it takes part where a prompt holds one of its ``triggers`` or its handle. ``about`` has author, license and description;
    ``preview`` is a small JPEG. A concept with ``residuals [C]`` by linear layer (``<layer>.to_v``) has nothing else: its handle stands for
    the class word with the residuals at it. ``training`` records how it was learned.
    """

    name: str
    class_word: str
    architecture: str
    fingerprint: str = ""
    words: tuple[str, ...] = ()
    factors: Mapping[str, LowRank] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    token_layers: tuple[int, ...] = ()
    text_factors: Mapping[str, LowRank] = field(default_factory=dict)
    residuals: Mapping[str, Tensor] = field(default_factory=dict)
    triggers: tuple[str, ...] = ()
    task: int = 1
    training: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    preview: bytes = b""

    @property
    def method(self) -> str:
        """How it acts when it paints, ``METHODS``: residuals at the class word, or words and factors, as any other LoRA does. Which method
        it was learned by stands in ``training``.
        """
        return RESIDUALS if self.residuals else LOW_RANK

    @property
    def kind(self) -> str:
        """A "thing" or a "style", as whoever taught it said, or "" where nobody did."""
        return str(self.training.get("kind", ""))

    @property
    def shared(self) -> str:
        """What tells the concepts that share their factors, as those do that were learned together; "" for factors of its own."""
        return str(self.training.get("shared_factors", ""))  # "shared" is a setting of CIDM

    @property
    def all_factors(self) -> dict[str, LowRank]:
        """Those of the U-Net and those of the text encoders; their names differ."""
        return {**self.factors, **self.text_factors}

    @cached_property
    def words_digest(self) -> str:
        """What the words are to a text encoder: where it is equal, so are words, rows and the layers that read them. A concept is not
        changed once it is made.
        """
        return digest(self.tokens, self.words, self.token_layers)

    @cached_property
    def text_digest(self) -> str:
        """What the factors of the text encoders are, in the same way."""
        return digest({f"{name}.{part}": getattr(f, part) for name, f in self.text_factors.items() for part in ("up", "down")})

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The rows and columns of the weights that it changes, by layer."""
        return {layer: (f.up.shape[0], f.down.shape[1]) for layer, f in self.all_factors.items()}

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        factors = sum(f.up.nbytes + f.down.nbytes for f in self.all_factors.values())
        return factors + sum(t.nbytes for t in (*self.tokens.values(), *self.residuals.values())) + len(self.preview)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Token rows by word."""
        layers = self.token_layers or tuple(range(next((t.shape[1] for t in self.tokens.values()), 0)))
        return {w: Table({e: t[i] for e, t in self.tokens.items()}, layers) for i, w in enumerate(self.words)}


def digest(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """SHA-256 of tensors by name, in order, and of facts that are written out."""
    found = hashlib.sha256(repr(facts).encode())
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
