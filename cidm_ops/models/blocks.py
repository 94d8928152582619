"""The transformer blocks of a model family: their sublayers and linear layers, by name and by what they do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["self", "cross", "joint", "feed_forward"]
Role = Literal["query", "key", "value", "out", "inner", "outer"]  # inner and outer: the first and the last layer of a feed-forward
Stream = Literal["image", "text", "both", "across"]  # across: an attention of the image's tokens to those of the text

# The groups of layers that training can be aimed at, by the kinds of the sublayers they lie in.
TARGETS: dict[str, tuple[Kind, ...]] = {
    "cross_attention": ("cross", "joint"),
    "attention": ("self", "cross", "joint"),
    "attention_ff": ("self", "cross", "joint", "feed_forward"),
}


@dataclass(frozen=True)
class Linear:
    """A linear layer inside a block: its name there, what it does and which tokens it reads."""

    name: str
    role: Role
    reads: Stream = "image"


@dataclass(frozen=True)
class Sublayer:
    """An attention or a feed-forward layer of a block (Vaswani et al. 2017): its name there, its kind and its linear layers."""

    name: str
    kind: Kind
    linears: Sequence[Linear]


@dataclass(frozen=True)
class Blocks:
    """Transformer blocks of one make: a regular expression for their canonical names, and their sublayers in order."""

    pattern: str
    sublayers: Sequence[Sublayer]
