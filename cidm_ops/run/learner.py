"""What a concept learns: layer-wise token rows and low-rank factors beside frozen layers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import linears
from ..backbone import Backbone
from ..bank.concept import Concept
from ..causal import attention_layers
from ..lowrank import LowRank
from ..method.consolidation import orthogonal_downs
from ..models.family import Family
from ..tokens import Table
from .recipe import Recipe


class Learner(nn.Module):
    """``tokens[encoder] [k, R, D]`` and ``up, down`` of every target layer.

    ``layers`` says which of the R rows of a word each layer reads. Raises ``ValueError`` when the rank is above the width of a layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_word: str,
        k: int,
        recipe: Recipe,
        earlier: Sequence[Mapping[str, LowRank]],
        generator: torch.Generator,
    ):
        super().__init__()
        layers: dict[str, Any] = linears(backbone, recipe.targets)
        self.names, self.scale = list(layers), recipe.scale
        shapes = {n: tuple(layer.weight.shape) for n, layer in layers.items()}
        narrow = min(shapes, key=lambda n: min(shapes[n]))
        if recipe.rank > min(shapes[narrow]):
            raise ValueError(f"rank {recipe.rank}: {narrow} is {min(shapes[narrow])} wide, expected at most that")
        self.layers = row_of_layer(backbone.family, list(backbone.cross_attention), recipe.groups)
        self.tokens = nn.ParameterDict()
        for encoder in backbone.encoders:
            nouns = [noun_row(backbone, noun, encoder).cpu() for noun in class_word.split()]
            adjective = torch.randn(nouns[0].shape, generator=generator) * recipe.init_sigma
            rows = torch.stack([adjective, *nouns][:k])
            self.tokens[encoder] = nn.Parameter(rows[:, None].repeat(1, 1 + max(self.layers), 1))
        if recipe.mode == "orthogonal":
            downs = orthogonal_downs(earlier, {n: s[1] for n, s in shapes.items()}, recipe.rank, generator)
        else:
            downs = {n: kaiming(recipe.rank, width, generator) for n, (_, width) in shapes.items()}
        frozen = recipe.mode == "orthogonal"
        self.downs = nn.ParameterList([nn.Parameter(downs[n], requires_grad=not frozen) for n in self.names])
        self.ups = nn.ParameterList([nn.Parameter(torch.zeros(out, recipe.rank)) for out, _ in shapes.values()])
        text: dict[str, Any] = attention_layers(backbone.texts) if recipe.lr_text else {}
        sides = {n: tuple(layer.weight.shape) for n, layer in text.items()}
        self.text_names = list(sides)
        self.text_downs = nn.ParameterList([nn.Parameter(kaiming(recipe.rank, width, generator)) for _, width in sides.values()])
        self.text_ups = nn.ParameterList([nn.Parameter(torch.zeros(out, recipe.rank)) for out, _ in sides.values()])

    @property
    def groups(self) -> tuple[list[nn.Parameter], ...]:
        """Parameters by learning rate: token rows, factors of the U-Net, factors of the text encoders."""
        return [*self.tokens.values()], [*self.ups, *self.downs], [*self.text_ups, *self.text_downs]

    def begin(self, concept: Concept) -> None:
        """Take what a concept knows already. Raises ``ValueError`` if it was learned with other settings."""
        have = {"factors": self.factors(), "text factors": self.factors(text=True)}
        for what, known in (("factors", concept.factors), ("text factors", concept.text_factors)):
            mine = have[what]
            if {n: f.up.shape for n, f in mine.items()} != {n: f.up.shape for n, f in known.items()}:
                raise ValueError(
                    f"concept {concept.name!r} has {len(known)} {what} of rank {_rank(known)}, these settings learn {len(mine)} of rank "
                    f"{_rank(mine)}: continue with the settings it was learned with"
                )
        if concept.tokens.keys() != self.tokens.keys() or any(self.tokens[e].shape != t.shape for e, t in concept.tokens.items()):
            raise ValueError(f"concept {concept.name!r} has other words or token groups than these settings: continue with those")
        with torch.no_grad():
            for text, known in ((False, concept.factors), (True, concept.text_factors)):
                for n, f in self.factors(text).items():
                    f.up.copy_(known[n].up / self.scale)
                    f.down.copy_(known[n].down)
            for e, rows in concept.tokens.items():
                self.tokens[e].copy_(rows)

    def deltas(self) -> dict[str, Any]:
        """What to add to the output of each layer while learning."""
        factors = self.factors() | self.factors(text=True)
        if self.scale == 1:
            return factors
        return {n: (lambda x, f=f: f(x) * self.scale) for n, f in factors.items()}

    def factors(self, text: bool = False) -> dict[str, LowRank]:
        """The factors themselves, not scaled, of the U-Net or of the text encoders."""
        names, ups, downs = (self.text_names, self.text_ups, self.text_downs) if text else (self.names, self.ups, self.downs)
        return {n: LowRank(u, d) for n, u, d in zip(names, ups, downs, strict=True)}

    def learned(self, text: bool = False) -> dict[str, LowRank]:
        """The factors for the concept file, at full scale."""
        return {n: LowRank(self.scale * f.up.detach().cpu(), f.down.detach().cpu()) for n, f in self.factors(text).items()}

    def tables(self, words: Sequence[str]) -> dict[str, Table]:
        """The rows of each word."""
        return {w: Table({e: t[i] for e, t in self.tokens.items()}, self.layers) for i, w in enumerate(words)}

    @property
    def words_learn(self) -> bool:
        return all(t.requires_grad for t in self.tokens.values())

    @property
    def norm(self) -> float:
        """Mean norm of the token rows of the first encoder."""
        return float(next(iter(self.tokens.values())).detach().norm(dim=-1).mean())


def kaiming(rank: int, width: int, generator: torch.Generator) -> Tensor:
    """A down factor ``[rank, width]``, Kaiming uniform with a = sqrt(5)."""
    return torch.empty(rank, width).uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)


def _rank(factors: Mapping[str, LowRank]) -> int:
    return next((f.rank for f in factors.values()), 0)


def row_of_layer(family: Family, names: Sequence[str], groups: str) -> tuple[int, ...]:
    """Which row of a word each cross-attention layer reads: its own (``layer``), that of its ``block``, or the only ``one``."""
    keys = {"layer": names, "block": [family.stage_of(n) for n in names], "one": [""] * len(names)}[groups]
    rows = list(dict.fromkeys(keys))
    return tuple(rows.index(key) for key in keys)


def noun_row(backbone: Backbone, noun: str, encoder: str) -> Tensor:
    """The token row ``[D]`` of a noun, the mean if the tokenizer splits it."""
    ids, kind = backbone.tokenize(noun, encoder)[0], backbone.family.encoder(encoder)
    end = int((ids == kind.end).nonzero()[0])
    return backbone.token_rows(ids[kind.first : end].to(backbone.device), encoder).mean(0)
