"""Concept words in prompts: one embedding row per word and cross-attention layer (P+, Voynov et al. 2023; CIDM 3.1).

A prompt keeps its concept words out of the tokenizer's sight: each is replaced by a rare word that CLIP knows as one
token, the host tokenizes the text with its own chunking and weights, and the rows of those tokens are replaced.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .backbone import Backbone

WORD = re.compile(r"<[A-Za-z0-9][A-Za-z0-9_.-]*>")

# Single CLIP tokens. Their meaning never reaches the encoder.
PLACEHOLDERS = dict(
    foxtv=49396, garza=49393, charli=49392, alsace=49388, udaipur=49385, hertz=49383, milla=49381, blanchett=49378,
    northwales=49371, dairyfree=49366, hayat=49360, nhljets=49357, ashleigh=49356, lupita=49352, antitrust=49343,
    orthopedic=49341, therapper=49340, pancreatic=49337, broome=49335, onstorm=49333, stingly=49332, wylie=49330,
    hamlin=49326, bbcsport=49321, monoxide=49314, barrymore=49310, lisse=49309, farmington=49305, rajkumar=49304,
    linus=49303, songz=49302, ssummit=49301, givingback=49300, bazar=49298, aztecs=49387, probiotics=49395,
)  # fmt: skip


def concept_words(name: str, class_word: str) -> list[str]:
    """``<dog.1> <dog.2>`` for a dog, three words for a teddy bear: a free adjective, then one per noun (CIDM, code)."""
    return [f"<{name}.{i}>" for i in range(1, 2 + len(class_word.split()))]


def words_in(prompt: str) -> list[str]:
    """All ``<words>`` of a prompt in order, each once."""
    return list(dict.fromkeys(WORD.findall(prompt)))


def hide(prompt: str, words: Iterable[str]) -> tuple[str, dict[int, str]]:
    """Replace concept words by placeholders.

    Returns the text for the tokenizer and which token id stands for which word.
    Raises ``ValueError`` when the prompt holds more distinct concept words than there are placeholders.
    """
    present = [w for w in words_in(prompt) if w in set(words)]
    spoken = set(re.findall(r"[a-z]+", prompt.lower()))
    free = [(p, i) for p, i in PLACEHOLDERS.items() if p not in spoken]
    if len(present) > len(free):
        raise ValueError(f"the prompt has {len(present)} concept words, at most {len(free)} fit: use fewer concepts in one prompt")
    hidden = {word: (p, i) for word, (p, i) in zip(present, free, strict=False)}
    text = WORD.sub(lambda m: f" {hidden[m[0]][0]} " if m[0] in hidden else m[0], prompt)
    return text, {i: word for word, (_, i) in hidden.items()}


def bind(ids: Tensor, rows: Tensor, hidden: Mapping[int, str], tables: Mapping[str, Tensor]) -> Tensor:
    """Put the concept rows in place of the placeholders.

    ``ids [..., 77]``, plain token ``rows [..., 77, D]``, ``tables[word] [L, D]``; returns ``[L, ..., 77, D]``.
    """
    layers = {table.shape[0] for table in tables.values()}
    if len(layers) != 1:
        raise ValueError(f"token tables of {sorted(layers)} layers cannot share a prompt: expected one number of layers")
    bound = rows.expand(layers.pop(), *rows.shape)
    for token, word in hidden.items():
        here = (ids == token)[None, ..., None]
        table = tables[word].to(rows)
        if table.shape[-1] != rows.shape[-1]:
            raise ValueError(
                f"{word} has rows of width {table.shape[-1]}, the text encoder has {rows.shape[-1]}: load the base it was learned on"
            )
        bound = torch.where(here, table.view(table.shape[0], *[1] * ids.ndim, -1), bound)
    return bound


def encode_layerwise(backbone: Backbone, prompts: list[str], tables: Mapping[str, Tensor]) -> Tensor:
    """Layer-wise contexts ``[B, L, N, C]`` of prompts; ``tables[word] [L, D]``, differentiable in the tables.

    All prompts must take the same number of 77-token chunks; ``N`` is 77 times that number.
    """
    ids, rows, counts = [], [], []
    for prompt in prompts:
        text, hidden = hide(prompt, tables)
        own = backbone.tokenize(text).to(backbone.device)
        plain = backbone.token_rows(own)
        bound = bind(own, plain, hidden, tables) if hidden else plain[None]  # [L or 1, chunks, 77, D]
        ids.append(own.repeat(len(bound), 1))
        rows.append(bound.flatten(0, 1))
        counts.append(len(bound))
    states = backbone.encode_text(torch.cat(ids), torch.cat(rows)).split([len(i) for i in ids])
    layers = max(counts) if max(counts) > 1 else len(backbone.cross_attention)
    contexts = [s.view(n, -1, s.shape[-1]).expand(layers, -1, -1) for s, n in zip(states, counts, strict=True)]
    if len({c.shape[1] for c in contexts}) > 1:
        raise ValueError(f"prompts of different length in one batch: {[c.shape[1] // 77 for c in contexts]} chunks of 77 tokens")
    return torch.stack(contexts)
