"""Encoded texts, kept by what they depend on: the text encoders as they are, the words and their rows, and what changes the encoders.

How strongly a concept acts is none of that unless it changes the encoders, so ``<dog:0.8>`` after ``<dog>`` is looked up. What is looked
up is, bit for bit, what would be computed: each text is encoded by itself, whatever came before.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..adapters import attach
from ..backbone import Backbone
from ..bank.bank import Bank
from ..bank.concept import Concept
from ..bank.index import stamp
from ..causal import AFTER_LAYER, linear_layers, transformer_of
from ..kept import Kept
from ..lowrank import LowRank, Stack
from ..method.aggregation import count_once, spoken_as, tables_of
from ..tokens import Text, count_layers, encode_beginning, encode_layerwise, hide, words_in

ROOM = 256 * 2**20  # bytes of texts that are kept for a text encoder, in main memory, and as many of words, and of concepts
Show = Callable[[int, int], None]  # is told what is done, and out of how many

TEXTS: WeakKeyDictionary[nn.Module, Kept[Text]] = WeakKeyDictionary()  # by the model of the first text encoder
WORDS: WeakKeyDictionary[nn.Module, Kept[Text]] = WeakKeyDictionary()
STATES: WeakKeyDictionary[nn.Module, Kept[object]] = WeakKeyDictionary()  # what stands for a state of the encoders in the keys of texts
CONCEPTS: Kept[Concept] = Kept(ROOM, lambda concept: concept.nbytes)
SHOW: ContextVar[Show] = ContextVar("show", default=lambda done, count: None)


@contextmanager
def show_encoding(show: Show) -> Iterator[None]:
    """Tell ``show`` how far the encoding of a text, or of the words of many concepts, is while this is open."""
    token = SHOW.set(show)
    try:
        yield
    finally:
        SHOW.reset(token)


def kept_concept(bank: Bank, name: str) -> Concept:
    """A concept of a bank as ``Bank.get`` loads it, which raises what that does; kept as long as its file is the same."""
    if name not in bank.headers:
        return bank.get(name)

    def load() -> Concept:
        with torch.inference_mode(False):  # what is kept is for everybody
            return bank.get(name)

    file = bank.file(name)
    return CONCEPTS.take((file.absolute(), *stamp(file)), load)


@torch.no_grad()
def kept_text(backbone: Backbone, prompt: str, concepts: Sequence[Concept] = (), strengths: Mapping[str, float] | None = None) -> Text:
    """A prompt encoded for every layer, with the words of ``concepts`` and what those with ``strengths`` changed in the text encoders."""
    strengths, tables = strengths or {}, tables_of(concepts)

    def encode() -> Text:
        deltas = text_deltas(concepts, strengths, backbone.device)
        with show_layers(backbone, hide(prompt, tables, backbone.family.placeholders)[0]), attach(linear_layers(backbone.texts), deltas):
            return encode_layerwise(backbone, [prompt], tables)

    if (state := state_of(backbone)) is None:
        return encode()
    said = set(words_in(prompt))
    named = tuple(concept.words_digest for concept in concepts if said.intersection(concept.words))
    changed = tuple((c.text_digest, c.shared, strengths[c.name]) for c in concepts if c.text_factors and strengths.get(c.name))
    kept = TEXTS.setdefault(first_text(backbone), Kept(ROOM, text_nbytes))
    key = state, prompt, count_layers(backbone, tables), named, changed
    return to(kept.take(key, lambda: lasting(encode())), backbone.device)


@torch.no_grad()
def kept_words(backbone: Backbone, concepts: Sequence[Concept]) -> list[Tensor]:
    """Text states ``[L, k, C]`` of each concept's words after "a". CLIP is causal: only what stands up to the last of them is encoded."""
    state, show = state_of(backbone), SHOW.get()
    kept = WORDS.setdefault(first_text(backbone), Kept(ROOM, text_nbytes))
    first = backbone.family.encoder().first + 1  # after "a"
    found: list[Text] = []

    def encode(concept: Concept) -> Text:
        end = first + length(backbone, concept)
        text = encode_beginning(backbone, f"a {spoken_as(concept)}", concept.tables, end)
        show(len(found) + 1, len(concepts))
        return lasting(replace(text, states=text.states[:, :, first:].contiguous()))

    for concept in concepts:
        key = state, spoken_as(concept), count_layers(backbone, concept.tables), concept.words_digest
        found.append(encode(concept) if state is None else kept.take(key, partial(encode, concept)))
    return [to(words, backbone.device).context[0] for words in found]


def length(backbone: Backbone, concept: Concept) -> int:
    """Tokens that a concept's words take in a text."""
    if concept.words:
        return len(concept.words)
    ids = backbone.tokenize(spoken_as(concept))[0].tolist()
    encoder = backbone.family.encoder()
    return ids.index(encoder.end) - encoder.first


def text_deltas(concepts: Sequence[Concept], strengths: Mapping[str, float], device: torch.device) -> dict[str, LowRank]:
    """The weighted sum of the concepts' factors for each layer of the text encoders; concepts without a strength take no part."""
    layers: dict[str, list[tuple[LowRank, float]]] = {}
    once = count_once(concepts, torch.tensor([strengths.get(concept.name, 0.0) for concept in concepts], dtype=torch.double)).tolist()
    for concept, strength in zip(concepts, once, strict=True):
        if strength:
            for name, f in concept.text_factors.items():
                layers.setdefault(name, []).append((f.to(device), strength))
    return {
        name: Stack.of([f for f, _ in parts]).merge(torch.tensor([s for _, s in parts], device=device)) for name, parts in layers.items()
    }


def state_of(backbone: Backbone) -> Hashable | None:
    """What stands for all that texts depend on beside themselves: the text encoders as they are, and the precision that autocast sets. None
    if that cannot be told.
    """
    if (state := backbone.text_state()) is None:
        return None
    kind = backbone.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return STATES.setdefault(first_text(backbone), Kept(64, lambda _: 1)).take((state, autocast), object)


def first_text(backbone: Backbone) -> nn.Module:
    return next(iter(backbone.texts.values()))


def to(text: Text, device: torch.device | str) -> Text:
    return replace(text, states=text.states.to(device), pooled=None if text.pooled is None else text.pooled.to(device))


@torch.inference_mode(False)
def lasting(text: Text) -> Text:
    """A text in main memory, for everybody: none whose tensors only inference may use."""
    found = to(text, "cpu")
    parts = {name: part.clone() for name in ("states", "pooled") if (part := getattr(found, name)) is not None and part.is_inference()}
    return replace(found, **parts)


def text_nbytes(text: Text) -> int:
    return text.states.nbytes + (0 if text.pooled is None else text.pooled.nbytes)


@contextmanager
def show_layers(backbone: Backbone, prompt: str) -> Iterator[None]:
    """Tell how many layers a text without concept words has gone through, of all that it goes through in all encoders."""
    show, done = SHOW.get(), 0
    depths = {encoder: len(transformer_of(model).encoder.layers) for encoder, model in backbone.texts.items()}
    count = sum(depth * len(backbone.tokenize(prompt, encoder)) for encoder, depth in depths.items())

    def tick() -> None:
        nonlocal done
        done += 1
        show(done, count)

    token = AFTER_LAYER.set(tick)
    try:
        yield
    finally:
        AFTER_LAYER.reset(token)
    show(count, count)  # some families read states that did not go through all layers
