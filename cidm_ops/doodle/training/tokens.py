"""Captions as token ids in a compact table, and the table as it ships."""

import numpy as np
import torch
from torch import Tensor, nn

from ...engines.tokenizer import tokenize
from ...models.clip import END, START
from ..files import ENCODER

RARE = 1024
STRANGERS = 3  # at most so many words without meaning come into a caption


class Tokens:
    """Caption token ids in a compact table: the words of the world, then ``RARE`` rows that stand for all others.

    Rare rows are never trained. They turn up in captions as words without meaning, so that a word the world does not
    use stays neutral, whatever its random row in the shipped table.
    """

    def __init__(self, ids: list[list[int]]):
        used = sorted({START, END}.union(*map(set, ids)))
        self.used = torch.tensor(used)
        compact = {t: i for i, t in enumerate(used)}
        self.bos, self.end = compact[START], compact[END]
        self.captions = [np.array([compact[t] for t in row]) for row in ids]
        self.vocabulary = len(used) + RARE
        lengths = np.array([len(words) for words in self.captions])
        # Every caption between its start and what fills it up, so that a batch is one look-up.
        self._filled = np.full((len(ids), ENCODER.chunk), self.end, np.int16)
        self._filled[:, 0] = self.bos
        inside = np.arange(ENCODER.room) < lengths[:, None]
        self._filled[:, 1 : 1 + ENCODER.room][inside] = np.concatenate([words[: ENCODER.room] for words in self.captions])
        self.longest = min(ENCODER.chunk, int(lengths.max()) + 2 + STRANGERS)

    def batch(self, which: np.ndarray, rng: np.random.Generator, dropout: float = 0.1, rare: float = 0.12) -> Tensor:
        """Padded ids ``[B, N]``: some captions dropped, some with meaningless words in between."""
        out = self._filled[which].astype(np.int64)
        dropped, strange = rng.random((2, len(which))) < [[dropout], [rare]]
        for i in np.flatnonzero(strange):
            words = self.captions[which[i]]
            strangers = rng.integers(len(self.used), self.vocabulary, rng.integers(1, 1 + STRANGERS))
            words = np.insert(words, rng.integers(len(words)), strangers)[: ENCODER.room]
            out[i, 1 : 1 + len(words)] = words
        out[dropped, 1:] = self.end
        return torch.from_numpy(out)


def token_ids(captions: list[list[str]]) -> list[list[int]]:
    """Ids of all wordings in order, without start and end; captions repeat, so words are looked up once."""
    known: dict[str, list[int]] = {}

    def ids(word: str) -> list[int]:
        if word not in known:
            row = tokenize(word)[0].tolist()
            known[word] = row[1 : row.index(row[-1])]
        return known[word]

    return [[i for word in text.replace(",", " ,").split() for i in ids(word)] for wordings in captions for text in wordings]


def table_rows(tokens: Tokens) -> Tensor:
    """Which rows of the whole token table compact ids stand for, ``[vocabulary]``: words of captions, then words without meaning."""
    used = {*tokens.used.tolist()}
    rare = [row for row in range(len(used) + RARE) if row not in used][:RARE]
    return torch.cat([tokens.used, torch.tensor(rare)])


def fill(text: nn.Module, state: dict[str, Tensor], tokens: Tokens) -> None:
    """Give a text encoder of the compact table weights, in CLIP's names, that have the whole one."""
    weights = {k.removeprefix("text_model."): v for k, v in state.items()}
    table = "embeddings.token_embedding.weight"
    weights[table] = weights[table][table_rows(tokens)]
    text.load_state_dict({k: weights[k.removeprefix("text_model.")] for k in text.state_dict()})


def shipped_text(state: dict[str, Tensor], tokens: Tokens) -> dict[str, Tensor]:
    """A text encoder in CLIP's names with its trained token rows only; the rest of the table is filled from a seed."""
    state = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in state.items() if "position_ids" not in k}
    rows = state.pop("text_model.embeddings.token_embedding.weight")
    return state | {"token_ids": tokens.used.int(), "token_rows": rows[: len(tokens.used)]}
