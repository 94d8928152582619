"""One concept as data: low-rank factors and layer-wise token rows, or residuals at the class word."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..lowrank import LowRank
from ..tokens import Table

LOW_RANK, RESIDUALS = "cidm", "infusion"
METHODS = (LOW_RANK, RESIDUALS)
ABOUT = ("author", "license", "description")  # names of the ModelSpec standard
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


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
    def reach(self) -> str:
        """At which words of a caption it was learned to act (``painting.scope``), or "" where that is the rule of its kind."""
        return str(self.training.get("reach", ""))

    @property
    def all_factors(self) -> dict[str, LowRank]:
        """Those of the U-Net and those of the text encoders; their names differ."""
        return {**self.factors, **self.text_factors}

    def tables(self) -> dict[str, Table]:
        """Token rows by word."""
        layers = self.token_layers or tuple(range(next((t.shape[1] for t in self.tokens.values()), 0)))
        return {w: Table({e: t[i] for e, t in self.tokens.items()}, layers) for i, w in enumerate(self.words)}


def check_name(name: str) -> str:
    """The name itself if it can be a file name and a ``<handle>``. Raises ``ValueError`` otherwise."""
    if not NAME.fullmatch(name):
        raise ValueError(f"concept name {name[:80]!r}: expected 1 to 64 letters, digits, '-' or '_', starting with a letter or digit")
    return name
