"""Concept words in prompts: one embedding row per word and cross-attention layer (P+, Voynov et al. 2023; CIDM 3.1).

A prompt keeps its concept words out of the tokenizer's sight: each is replaced by a rare word that the tokenizer knows as one
token, the host tokenizes the text with its own chunking and weights, and the rows of those tokens are replaced.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .backbone import Backbone, TransformerBackbone
from .concept_text import ConceptText
from .row_plan import RowPlan

WORD = re.compile(r"<[A-Za-z0-9][A-Za-z0-9_.-]*>")


def concept_words(name: str, class_word: str) -> list[str]:
    """``<dog.1> <dog.2>`` for a dog, three words for a teddy bear: a free adjective, then one per noun (CIDM, code)."""
    return [f"<{name}.{i}>" for i in range(1, 2 + len(class_word.split()))]


def words_in(prompt: str) -> list[str]:
    """All ``<words>`` of a prompt in order, each once."""
    return list(dict.fromkeys(WORD.findall(prompt)))


def hide(prompt: str, words: Iterable[str], placeholders: Mapping[str, int]) -> tuple[str, dict[int, str]]:
    """Replace concept words by ``placeholders``, words of one token with their ids (``Family.placeholders``).

    Returns the text for the tokenizer and which token id stands for which word.
    Raises ``ValueError`` when the prompt holds more distinct concept words than there are placeholders.
    """
    present = [w for w in words_in(prompt) if w in set(words)]
    spoken = set(re.findall(r"[a-z]+", prompt.lower()))
    free = [(p, i) for p, i in placeholders.items() if p not in spoken]
    if len(present) > len(free):
        raise ValueError(f"the prompt has {len(present)} concept words, at most {len(free)} fit: use fewer concepts in one prompt")
    hidden = {word: (p, i) for word, (p, i) in zip(present, free, strict=False)}
    text = WORD.sub(lambda m: f" {hidden[m[0]][0]} " if m[0] in hidden else m[0], prompt)
    return text, {i: word for word, (_, i) in hidden.items()}


@dataclass(frozen=True)
class Table:
    """The rows of one concept word: ``rows[encoder] [R, D]``, and which of them each of the L cross-attention layers reads."""

    rows: Mapping[str, Tensor]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """Encoded prompts: ``states [B, V, N, C]`` in V variants, the variant that each of the L layers reads, ``pooled [B, P]`` in SDXL.

    Layers that read the same rows share a variant, so a prompt without concept words has one.
    """

    states: Tensor
    layers: tuple[int, ...]
    pooled: Tensor | None = None
    plans: tuple[RowPlan | None, ...] = ()  # what its rows mean beside what layers read; none without concepts

    @property
    def rows(self) -> ConceptText:
        """The text ``[B, N, C]`` whose rows bring what each layer reads of them, and their plans."""
        plans = self.plans or (None,) * len(self.states)
        layered = self.states.shape[1] > 1
        read = [replace(p or RowPlan(), layers=own if layered else None) for p, own in zip(plans, self.context, strict=True)]
        return ConceptText.of(self.context.mean(1) if layered else self.states[:, 0], read)

    @property
    def context(self) -> Tensor:
        """``[B, L, N, C]``, for the model."""
        if self.states.shape[1] == 1:
            return self.states.expand(-1, len(self.layers), -1, -1)
        return self.states if self.layers == tuple(range(self.states.shape[1])) else self.states[:, list(self.layers)]

    def expand(self, count: int) -> "Text":
        """One text for ``count`` pictures."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Text(self.states.expand(count, -1, -1, -1), self.layers, pooled, self.plans * count)

    def detach(self) -> "Text":
        return Text(self.states.detach(), self.layers, None if self.pooled is None else self.pooled.detach(), self.plans)


def join(texts: Sequence[Text]) -> Text:
    """Texts of one length as one batch. Raises ``ValueError`` when their lengths differ."""
    if len({t.states.shape[2] for t in texts}) > 1:
        raise ValueError(f"prompts of different length in one batch: {[t.states.shape[2] for t in texts]} tokens")
    if len(texts) == 1:
        return texts[0]
    variants = list(dict.fromkeys(zip(*(t.layers for t in texts), strict=True)))
    layers = tuple(variants.index(chosen) for chosen in zip(*(t.layers for t in texts), strict=True))
    states = [t.states[:, [chosen[i] for chosen in variants]] for i, t in enumerate(texts)]
    pooled = [t.pooled for t in texts if t.pooled is not None]
    return Text(torch.cat(states), layers, torch.cat(pooled) if pooled else None, _join_plans(texts))


def _join_plans(texts: Sequence[Text]) -> tuple[RowPlan | None, ...]:
    """The plans of all rows in order, ``None`` for those of a text without plans; empty when no text has any."""
    if not any(t.plans for t in texts):
        return ()
    return tuple(plan for t in texts for plan in t.plans or (None,) * len(t.states))


def of_one_length(backbone: Backbone, texts: Sequence[Text]) -> list[Text]:
    """Texts without plans, the shorter ones filled up with empty chunks as every trainer does, so that they can be joined."""
    longest = max(t.states.shape[2] for t in texts)
    if all(t.states.shape[2] == longest for t in texts):
        return list(texts)
    empty = _encode(backbone, "", {}, 1).states
    filled = []
    for text in texts:
        chunks = (longest - text.states.shape[2]) // empty.shape[2]
        rest = empty.to(text.states).repeat(1, 1, chunks, 1).expand(*text.states.shape[:2], -1, -1)
        filled.append(replace(text, states=torch.cat([text.states, rest], 2)))
    return filled


def positions_of(backbone: Backbone, prompt: str, words: Sequence[str]) -> list[int]:
    """Find where the words stand among the text states of a prompt, in the order of ``words``; without those that are not in it."""
    text, hidden = hide(prompt, words, backbone.family.placeholders)
    at = {hidden[token]: i for i, token in reversed([*enumerate(backbone.tokenize(text).flatten().tolist())]) if token in hidden}
    return [at[word] for word in words if word in at]


def stand_for(backbone: Backbone, prompt: str, plain: Mapping[str, str], words: Sequence[str] = ()) -> tuple[str, dict[str, Tensor]]:
    """The prompt with ordinary words in place of the ``<handles>`` in ``plain``, and where those stand: ``[N]``, 1 at their tokens.

    Found among the tokens, so punctuation, weights and words of several tokens are as the tokenizer splits them. ``words`` are
    concept words, which stay hidden.
    """
    said = WORD.sub(lambda m: f" {plain[m[0]]} " if m[0] in plain else m[0], prompt)
    family = backbone.family
    special = family.encoder().special
    text, hidden = hide(prompt, [*plain, *words], family.placeholders)
    shown, _ = hide(said, words, family.placeholders)
    ids, marked, *nouns = (backbone.tokenize(t).flatten().tolist() for t in (shown, text, *plain.values()))
    lengths = {handle: sum(i not in special for i in noun) for handle, noun in zip(plain, nouns, strict=True)}
    marks = {handle: torch.zeros(len(ids)) for handle in plain if handle in hidden.values()}
    places = (i for i, token in enumerate(ids) if token not in special)
    for token in (i for i in marked if i not in special):
        handle = hidden.get(token, "")
        at = [next(places, -1) for _ in range(lengths.get(handle, 1))]
        if -1 in at:
            break
        if handle in marks:
            marks[handle][at] = 1
    else:
        if next(places, -1) == -1:
            return said, marks
    raise ValueError(f"the prompt {prompt[:80]!r} has other tokens with its concepts' class words in it: put them apart from other words")


def bind(ids: Tensor, rows: Tensor, hidden: Mapping[int, str], chosen: Mapping[str, Tensor]) -> Tensor:
    """Put the concept rows in place of the placeholders.

    ``ids [..., N]``, plain token ``rows [..., N, D]``, ``chosen[word] [V, D]``; returns ``[V, ..., N, D]``.
    """
    bound = rows[None]
    for token, word in hidden.items():
        table = chosen[word].to(rows)
        if table.shape[-1] != rows.shape[-1]:
            raise ValueError(
                f"{word} has rows of width {table.shape[-1]}, the text encoder has {rows.shape[-1]}: load the base it was learned on"
            )
        here = (ids == token)[None, ..., None]
        bound = torch.where(here, table.view(table.shape[0], *[1] * ids.ndim, -1), bound)
    return bound


def encode_layerwise(backbone: Backbone, prompts: Sequence[str], tables: Mapping[str, Table]) -> Text:
    """Encode prompts, differentiable in the tables' rows. Shorter ones are filled up with empty chunks.

    The states of several text encoders lie side by side in C; the pooled state is that of the first variant's first chunk.
    """
    count = count_layers(backbone, tables)
    return join(of_one_length(backbone, [_encode(backbone, prompt, tables, count) for prompt in prompts]))


def read_plain(backbone: Backbone | TransformerBackbone, prompt: str) -> Text:
    """A prompt without concept words, as any model reads it."""
    if not isinstance(backbone, TransformerBackbone):
        return encode_layerwise(backbone, [prompt], {})
    return joined(backbone, *backbone.read(prompt))


def joined(backbone: TransformerBackbone, states: Tensor, pooled: Tensor | None) -> Text:
    """What a transformer reads of one text, ``states [1, N, C]`` and ``pooled [1, P]``, on its device."""
    pooled = None if pooled is None else pooled.to(backbone.device)
    return Text(states[:, None].to(backbone.device), (0,) * len(backbone.cross_attention), pooled)


def encode_beginning(backbone: Backbone, prompt: str, tables: Mapping[str, Table], length: int) -> Text:
    """Encode the first ``length`` tokens of a prompt, of its first chunk at most. The text encoders are causal: the states of these do not
    depend on what comes after. There is no pooled state, which is that of the end.
    """
    return replace(_encode(backbone, prompt, tables, count_layers(backbone, tables), length), pooled=None)


def count_layers(backbone: Backbone, tables: Mapping[str, Table]) -> int:
    """Count the layers that read a text: as the tables of its concepts say, else as many as the model has, else one.

    Raises ``ValueError`` for tables of models of different depth.
    """
    counts = {len(t.layers) for t in tables.values()} or {len(backbone.cross_attention) or 1}
    if len(counts) > 1:
        raise ValueError(f"token tables of {sorted(counts)} layers cannot share a prompt: expected one number of layers")
    return counts.pop()


def _encode(backbone: Backbone, prompt: str, tables: Mapping[str, Table], layers: int, length: int | None = None) -> Text:
    """One prompt, or its first tokens. Only the combinations of rows that some layer reads are encoded, and what stands before the first
    word once.
    """
    text, hidden = hide(prompt, tables, backbone.family.placeholders)
    read = list(zip(*(tables[w].layers for w in hidden.values()), strict=True)) or [()] * layers
    variants = list(dict.fromkeys(read))
    sides, pooled = [], None
    for encoder in backbone.encoders:
        ids = backbone.tokenize(text, encoder).to(backbone.device)
        ids = ids if length is None else ids[:1, :length]
        plain = backbone.token_rows(ids, encoder)
        chosen = {w: tables[w].rows[encoder][[v[i] for v in variants]] for i, w in enumerate(hidden.values())}
        chunks = []
        for chunk, rows in zip(ids, plain, strict=True):
            here = [i for i, token in enumerate(chunk.tolist()) if token in hidden]
            bound = bind(chunk, rows, hidden, chosen) if here else rows[None]
            states, summary = backbone.encode_text(chunk.expand(len(bound), -1), bound, encoder, here[0] if here else len(chunk))
            chunks.append(states.expand(len(variants), -1, -1))
            if summary is not None and pooled is None:
                pooled = summary
        sides.append(torch.cat(chunks, 1))
    return Text(torch.cat(sides, -1)[None], tuple(variants.index(v) for v in read), pooled)
