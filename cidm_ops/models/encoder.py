"""A text encoder of a model family."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Encoder:
    """A text encoder, and what its tokenizer makes of a text.

    A text is cut into chunks of ``chunk`` tokens: ``start``, the tokens of the text, ``end``, and ``pad`` up to the full length. A
    tokenizer without a start token has ``start=None``.
    """

    name: str  # in concept files and in the names of its layers, such as "clip_l"
    width: int  # of a token's row
    chunk: int
    start: int | None
    end: int
    pad: int
    placeholders: Mapping[str, int]  # words of one token whose meaning is not needed, which stand for concept words
    skip: int = 0  # how many of its last layers the model does not read; without the last one there is no final norm
    pooled: bool = False  # whether the model reads its pooled state too
    diffusers: str = "text_encoder"  # its folder and its part of a pipeline
    host: str = ""  # the attribute of the host's text model
    host_tokens: str = ""  # the key of its tokens in what the host's tokenizer returns
    kohya: str = "lora_te_"  # begins the keys of its layers in a LoRA file
    roots: Sequence[str] = ()  # what begins its keys in the LoRA files of others, as regular expressions with ``_`` for every dot
    read_layer: Callable[[str], str | None] = lambda flat: None  # such a key without its root, to the name of a layer in the encoder
    rows: Sequence[str] = ()  # what files of embeddings call its rows, beside its name

    @property
    def room(self) -> int:
        """How many tokens of a text fit into one chunk."""
        return self.chunk - 1 - (self.start is not None)

    @property
    def special(self) -> tuple[int, ...]:
        """The ids that are no part of a text: start, end and padding."""
        return tuple(dict.fromkeys(i for i in (self.start, self.end, self.pad) if i is not None))

    @property
    def first(self) -> int:
        """The position of a text's first token in a chunk."""
        return int(self.start is not None)
