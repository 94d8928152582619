"""Where concepts act on a prompt: on all of it, as a LoRA does, or only where they are named (ours).

A LoRA changes the keys and values of every word of a prompt, so a learned style repaints what the other words say. Left alone, they mean
what they mean to the base; and with the base's queries a style does not move what is looked at. A thing needs the end of the text too,
which sums the prompt up, and loses as much likeness as it gains obedience: docs/painting.md.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backbone import Backbone
from ..bank.concept import Concept
from ..models.family import family_of
from ..tokens import hide

BY_KIND, EVERYWHERE, WORDS_AND_END, WORDS = REACHES = ("by kind", "everywhere", "words and end", "words")
OF_KIND = {"style": WORDS}


def reach_of(concept: Concept, reach: str = BY_KIND) -> str:
    """How far a concept acts. By kind, only a style does less than everywhere; without words of its own, as an imported LoRA, none does.

    Raises ``ValueError`` for an unknown ``reach``.
    """
    if reach not in REACHES:
        raise ValueError(f"reach {reach!r}: expected one of {', '.join(REACHES)}")
    if not concept.words:
        return EVERYWHERE
    return OF_KIND.get(concept.kind, EVERYWHERE) if reach == BY_KIND else reach


def reaching(concepts: Sequence[Concept], reach: str) -> list[Concept]:
    """The concepts with what they change at all: acting on their words alone, they leave queries as they are."""
    return [without_queries(concept) if reach_of(concept, reach) == WORDS else concept for concept in concepts]


def without_queries(concept: Concept) -> Concept:
    """The concept, leaving what the picture looks at to the base."""
    family = family_of(concept.architecture)
    return replace(concept, factors={name: f for name, f in concept.factors.items() if not family.looks_at_text(name)})


def marks(backbone: Backbone, text: str, concepts: Sequence[Concept], reach: str) -> Tensor:
    """``[N, G]``: 1 at those of the N tokens of a text at whose keys and values each of G concepts acts, padding counted in, else 0.

    A text that does not name a concept has none of its words. Raises ``ValueError`` for an unknown ``reach``.
    """
    encoder = backbone.family.encoder()
    visible, hidden = hide(text, [word for concept in concepts for word in concept.words], encoder.placeholders)
    ids = backbone.tokenize(visible).cpu()
    ended = ids.eq(encoder.end).cumsum(1).bool().flatten()
    found = torch.zeros(ids.numel(), len(concepts))
    for g, concept in enumerate(concepts):
        how = reach_of(concept, reach)
        own = torch.isin(ids.flatten(), torch.tensor([token for token, word in hidden.items() if word in concept.words]))
        found[own, g] = 1.0
        if own.any() and how == WORDS_AND_END:
            found[ended, g] = 1.0
        if how == EVERYWHERE:
            found[:, g] = 1.0
    return found


def everywhere(concepts: Sequence[Concept], reach: str) -> bool:
    """Whether all of them act as LoRAs do, so that they can be merged."""
    return all(reach_of(concept, reach) == EVERYWHERE for concept in concepts)
