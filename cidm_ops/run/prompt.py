"""From a prompt and a bank to what the model needs: a layer-wise context and the aggregated factors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbone import Backbone
from ..bank.bank import Bank, check_base
from ..bank.concept import Concept
from ..lowrank import LowRank
from ..method.aggregation import aggregate, tables_of, weights
from ..tokens import Text, encode_layerwise


def concepts_for(bank: Bank, prompt: str, mode: str, backbone: Backbone) -> tuple[str, list[Concept], list[str]]:
    """The prompt with handles written out, the concepts that take part and warnings about their base.

    ``exact`` loads only the concepts in the prompt, the soft modes load all. Raises ``ValueError`` for a word no concept
    has and for a concept of another architecture.
    """
    text = bank.expand(prompt)
    names = bank.spoken(text) if mode == "exact" else bank.names
    warnings = [check_base(bank.headers[name], backbone.architecture, backbone.fingerprint) for name in names]
    return text, [bank.get(name) for name in names], [w for w in warnings if w]


@torch.no_grad()
def encode_prompts(backbone: Backbone, prompts: list[str], concepts: Sequence[Concept]) -> Text:
    """Prompts whose handles are written out, encoded for every layer."""
    return encode_layerwise(backbone, prompts, tables_of(concepts))


def factors_for(
    backbone: Backbone, prompt: str, concepts: Sequence[Concept], mode: str, strength: float
) -> tuple[dict[str, LowRank], Tensor]:
    """Aggregated factors per linear layer for a prompt, and the weights ``[L, G]`` behind them."""
    w = strength * weights(mode, backbone, prompt, concepts).cpu()
    return aggregate(concepts, w, list(backbone.cross_attention)), w
