"""What diffusers calls a model family and its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .encoder import Encoder


@dataclass(frozen=True)
class TextReader:
    """How diffusers makes the one text that a transformer reads.

    ``states`` is the folder of the encoder, ``tokenizer`` that of its tokenizer, and ``layer`` which of its hidden states are read, or
    ``layers`` which are, side by side, without looking at what fills a text up. A text is filled up to ``least`` tokens, as the host does,
    is said in a ``chat`` or stands for ``{}`` in a ``template``, of which the model does not read the first ``cut`` tokens, and its pooled
    state comes from another encoder and its tokenizer, ``pooled``. Encoders and their tokenizers ``beside`` it, which are CLIPs, stand in
    front of it, side by side, and have pooled states too. If it goes ``through`` an adapter, the tokens are those of the tokenizer named
    beside that. Of a ``clip``, whose tokens need no tokenizer of the folder, one chunk is read, cut to its end.
    """

    states: str = "text_encoder"
    tokenizer: str = "tokenizer"
    layer: int = -1
    layers: Sequence[int] = ()
    least: int = 0
    chat: bool = False
    thinking: bool = True  # what the chat is told to do about it
    template: str = ""
    cut: int = 0
    pooled: tuple[str, str] = ("", "")
    beside: Sequence[tuple[str, str]] = ()
    through: tuple[str, str] | None = None
    clip: Encoder | None = None


@dataclass(frozen=True)
class Diffusers:
    """The names of diffusers say what it calls a family's model, and how it configures its parts. What is not named is the default of the
    class.

    ``facts`` are entries of the model's configuration that tell the family from others, and ``names`` the model's layers by ours, with
    ``{}`` for the number of the block, where they are not ours.
    """

    folder: str = "unet"  # of the model
    names: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by the name of the text encoder
    vae: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)  # of noise, where a file does not say it
    reader: TextReader = TextReader()  # of a transformer's text
    mu: float = 1.15  # of the shift where its schedule says that it depends on the size: the host's, at 1024 pixels
    multiple: int = 1  # that the tokens of such a text are filled up to
