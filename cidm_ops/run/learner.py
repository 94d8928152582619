"""What a concept learns: layer-wise token rows and low-rank factors beside frozen layers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import linears
from ..backbone import Backbone
from ..lowrank import LowRank
from ..method.consolidation import orthogonal_downs
from ..tokens import END, Table
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
        layers: dict[str, Any] = linears(backbone.blocks, recipe.targets)
        self.names, self.scale = list(layers), recipe.scale
        shapes = {n: tuple(layer.weight.shape) for n, layer in layers.items()}
        narrow = min(shapes, key=lambda n: min(shapes[n]))
        if recipe.rank > min(shapes[narrow]):
            raise ValueError(f"rank {recipe.rank}: {narrow} is {min(shapes[narrow])} wide, expected at most that")
        self.layers = row_of_layer(list(backbone.cross_attention), recipe.groups)
        self.tokens = nn.ParameterDict()
        for encoder in backbone.encoders:
            nouns = [noun_row(backbone, noun, encoder).cpu() for noun in class_word.split()]
            adjective = torch.randn(nouns[0].shape, generator=generator) * recipe.init_sigma
            rows = torch.stack([adjective, *nouns][:k])
            self.tokens[encoder] = nn.Parameter(rows[:, None].repeat(1, 1 + max(self.layers), 1))
        if recipe.mode == "orthogonal":
            downs = orthogonal_downs(earlier, {n: s[1] for n, s in shapes.items()}, recipe.rank, generator)
        else:  # kaiming uniform with a = sqrt(5)
            downs = {
                n: torch.empty(recipe.rank, width).uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)
                for n, (_, width) in shapes.items()
            }
        frozen = recipe.mode == "orthogonal"
        self.downs = nn.ParameterList([nn.Parameter(downs[n], requires_grad=not frozen) for n in self.names])
        self.ups = nn.ParameterList([nn.Parameter(torch.zeros(out, recipe.rank)) for out, _ in shapes.values()])

    def deltas(self) -> dict[str, Any]:
        """What to add to the output of each layer while learning."""
        factors = self.factors()
        if self.scale == 1:
            return factors
        return {n: (lambda x, f=f: f(x) * self.scale) for n, f in factors.items()}

    def factors(self) -> dict[str, LowRank]:
        """The factors themselves, not scaled."""
        return {n: LowRank(u, d) for n, u, d in zip(self.names, self.ups, self.downs, strict=True)}

    def learned(self) -> dict[str, LowRank]:
        """The factors for the concept file, at full scale."""
        return {n: LowRank(self.scale * f.up.detach().cpu(), f.down.detach().cpu()) for n, f in self.factors().items()}

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


def row_of_layer(names: Sequence[str], groups: str) -> tuple[int, ...]:
    """Which row of a word each cross-attention layer reads: its own (``layer``), that of its ``block``, or the only ``one``."""
    keys = {"layer": names, "block": [n.partition(".transformer_blocks.")[0] for n in names], "one": [""] * len(names)}[groups]
    rows = list(dict.fromkeys(keys))
    return tuple(rows.index(key) for key in keys)


def noun_row(backbone: Backbone, noun: str, encoder: str) -> Tensor:
    """The token row ``[D]`` of a noun, the mean if CLIP splits it."""
    ids = backbone.tokenize(noun, encoder)[0]
    length = int((ids[1:] == END).nonzero()[0])
    return backbone.token_rows(ids[1 : 1 + length].to(backbone.device), encoder).mean(0)
