"""At which tokens of a prompt concepts act: at all of them, as a LoRA does, or only where they are named (ours).

A LoRA changes the keys and values of every word of a prompt, so a learned style repaints what the other words say. Left alone, they mean
what they mean to the base; and with the base's queries a style does not move what is looked at. A thing needs the end of the text too,
which sums the prompt up, and loses as much likeness as it gains obedience: docs/painting.md.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backbone import Backbone
from ..bank.concept import Concept
from ..models.registry import family_of
from ..row_plan import END_OF_TEXT
from ..tokens import hide
from .config import BY_KIND, EVERYWHERE, SCOPES, WORDS, WORDS_AND_END

OF_KIND = {"style": WORDS}


def scope_of(concept: Concept, scope: str = BY_KIND) -> str:
    """Say where a concept acts. By kind, it acts where it learned to, if that was set, and else only a style acts at less than all tokens;
    a concept without words of its own, such as an imported LoRA, always acts at all.

    Raises ``ValueError`` for an unknown ``scope``, given or learned with.
    """
    if scope not in SCOPES:
        raise ValueError(f"reach {scope!r}: expected one of {', '.join(SCOPES)}")
    if not concept.words:
        return EVERYWHERE
    if scope != BY_KIND:
        return scope
    if concept.reach in ("", BY_KIND):
        return OF_KIND.get(concept.kind, EVERYWHERE)
    if concept.reach not in SCOPES:
        raise ValueError(
            f"<{concept.name}> was learned with reach {concept.reach!r}, which is not known here: set one of {', '.join(SCOPES[1:])}"
        )
    return concept.reach


def acts_everywhere(concepts: Sequence[Concept], scope: str) -> bool:
    """Whether all of them act as LoRAs do, so that they can be merged."""
    return all(scope_of(concept, scope) == EVERYWHERE for concept in concepts)


def limit_to_scope(concepts: Sequence[Concept], scope: str) -> list[Concept]:
    """Return the concepts with what they change at all: acting on their words alone, they leave queries as they are."""
    return [without_queries(concept) if scope_of(concept, scope) == WORDS else concept for concept in concepts]


def without_queries(concept: Concept) -> Concept:
    """The concept, leaving what the image looks at to the base."""
    family = family_of(concept.architecture)
    return replace(concept, factors={name: f for name, f in concept.factors.items() if not family.looks_at_text(name)})


def token_masks(backbone: Backbone, text: str, concepts: Sequence[Concept]) -> dict[str, Tensor]:
    """``[N]`` by concept name: 1 where the concept's words stand among the N tokens of a text; and where the text has ended."""
    return word_masks(backbone, text, {concept.name: concept.words for concept in concepts})


def word_masks(backbone: Backbone, text: str, words: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """``token_masks`` of ``words`` by the names of their concepts."""
    encoder = backbone.family.encoder()
    visible, hidden = hide(text, [word for own in words.values() for word in own], encoder.placeholders)
    ids = backbone.tokenize(visible).cpu()
    found = {END_OF_TEXT: ids.eq(encoder.end).cumsum(1).bool().flatten().float()}
    for name, own in words.items():
        tokens = torch.tensor([token for token, word in hidden.items() if word in own])
        found[name] = torch.isin(ids.flatten(), tokens).float()
    return found


def widen(own: Tensor, ended: Tensor, scope: str) -> Tensor:
    """Where a concept whose words stand at ``own [N]`` acts on a text that has ``ended [N]``: with ``words and end`` there too, if it is
    named at all.
    """
    return torch.maximum(own, ended.to(own)) if scope == WORDS_AND_END and own.any() else own


def acting_at(masks: Mapping[str, Tensor], concepts: Sequence[Concept], scope: str, tokens: int) -> Tensor:
    """``[N, G]``: how far each of G concepts acts at the keys and values of N ``tokens`` of a text with these ``token_masks``.

    A text that does not name a concept has none of its words. Where several share their factors, each acts at the words of all.
    """
    nowhere = torch.zeros(tokens)
    columns = []
    for concept in concepts:
        sharing = [c.name for c in concepts if c.shared == concept.shared] if concept.shared else [concept.name]
        named = [masks[name] for name in sharing if name in masks]
        how, own = scope_of(concept, scope), torch.stack(named).amax(0) if named else nowhere
        own = widen(own, masks.get(END_OF_TEXT, nowhere), how)
        columns.append(torch.ones(tokens) if how == EVERYWHERE else repeat_mask(own, tokens))
    return torch.stack([column.cpu() for column in columns], 1) if columns else torch.zeros(tokens, 0)


def repeat_mask(mask: Tensor, tokens: int) -> Tensor:
    """Return the mask over the tokens of a text that stands several times in ``tokens``. Raises ``ValueError`` if it does not."""
    if tokens % len(mask):
        raise ValueError(
            f"a text of {len(mask)} tokens is read as {tokens}: another node made it longer in the model, where CIDM cannot see"
        )
    return mask.repeat(tokens // len(mask))


def masks_of_triggers(text: str, concepts: Sequence[Concept], ids: Callable[[str], Sequence[int]]) -> dict[str, Tensor]:
    """``[N]`` by concept name: 1 where one of its triggers, or its class word, stands among the N tokens of a text, as ``ids`` gives them.
    A concept that the text does not name so has none.
    """
    whole, masks = ids(text), {}
    for concept in concepts:
        mask = torch.zeros(len(whole))
        for word in filter(None, (*concept.triggers, concept.class_word)):
            for at in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE):
                found = inserted_at(whole, ids(text[: at.start()].rstrip() + text[at.end() :]))
                mask[found.start : found.stop] = 1
        if mask.any():
            masks[concept.name] = mask
    return masks


def inserted_at(ids: Sequence[int], without: Sequence[int]) -> range:
    """The positions of the tokens of a word in ``ids``, of which ``without`` are those of the same text without it.

    Whatever a tokenizer puts around a text is in both, and what fills it up to a length is left out.
    """

    def unfilled(tokens: Sequence[int]) -> Sequence[int]:
        last = tokens[-1:]
        kept = len(tokens)
        while kept and tokens[kept - 1] == last[0]:
            kept -= 1
        return tokens[:kept]

    longer, shorter = (unfilled(ids), unfilled(without)) if ids[-1:] == without[-1:] else (ids, without)
    start = next((i for i, (a, b) in enumerate(zip(longer, shorter, strict=False)) if a != b), min(len(longer), len(shorter)))
    return range(start, start + max(len(longer) - len(shorter), 0))
