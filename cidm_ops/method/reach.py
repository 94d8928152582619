"""Where in a text concepts act on keys and values: at every token, as a LoRA does, or only where they are named (ours).

A LoRA changes the keys and values of every word of a prompt, so a learned style repaints what the other words say, and a learned thing
takes the place of its neighbours. Left alone, the other words mean what they mean to the base. The end of the text sums the prompt up:
a thing needs it to be itself, a style does better without; docs/benchmark.md.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbone import Backbone
from ..bank.concept import Concept
from ..tokens import END, hide

EVERYWHERE, WORDS_AND_END, WORDS = REACHES = ("everywhere", "words and end", "words")
READS_TEXT = re.compile(r"attn2\.to_[kv]$")


def marks(backbone: Backbone, text: str, concepts: Sequence[Concept], reach: str) -> Tensor:
    """``[N, G]``: 1 at those of the N tokens of a text where each of G concepts acts, padding counted in, and 0 elsewhere.

    A text that does not name a concept has none of its words. One without words of its own, as an imported LoRA, acts everywhere.
    Raises ``ValueError`` for an unknown ``reach``.
    """
    if reach not in REACHES:
        raise ValueError(f"reach {reach!r}: expected one of {', '.join(REACHES)}")
    visible, hidden = hide(text, [word for concept in concepts for word in concept.words])
    ids = backbone.tokenize(visible).cpu()
    ended = ids.eq(END).cumsum(1).bool().flatten()
    found = torch.zeros(ids.numel(), len(concepts))
    for g, concept in enumerate(concepts):
        own = torch.isin(ids.flatten(), torch.tensor([token for token, word in hidden.items() if word in concept.words]))
        found[own, g] = 1.0
        if own.any() and reach == WORDS_AND_END:
            found[ended, g] = 1.0
        if reach == EVERYWHERE or not concept.words:
            found[:, g] = 1.0
    return found
