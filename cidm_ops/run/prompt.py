"""From a prompt and a bank to what the model needs: a layer-wise context and the aggregated factors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import attached
from ..backbone import Backbone
from ..bank.bank import Bank, check_base
from ..bank.concept import Concept
from ..causal import attention_layers
from ..lowrank import LowRank, Stack
from ..method.aggregation import aggregate, tables_of, weights
from ..tokens import Text, encode_layerwise, words_in


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
    """Prompts whose handles are written out, encoded for every layer, with what their concepts changed in the text encoders."""
    spoken = {word for prompt in prompts for word in words_in(prompt)}
    with attached(attention_layers(backbone.texts), text_deltas([c for c in concepts if spoken & set(c.words)], backbone.device)):
        return encode_layerwise(backbone, prompts, tables_of(concepts))


def text_deltas(concepts: Sequence[Concept], device: torch.device) -> dict[str, LowRank]:
    """The sum of the concepts' factors for each layer of the text encoders."""
    layers: dict[str, list[LowRank]] = {}
    for concept in concepts:
        for name, f in concept.text_factors.items():
            layers.setdefault(name, []).append(LowRank(f.up.to(device), f.down.to(device)))
    return {name: Stack.of(parts).merged(torch.ones(len(parts), device=device)) for name, parts in layers.items()}


def factors_for(
    backbone: Backbone, prompt: str, concepts: Sequence[Concept], mode: str, strength: float
) -> tuple[dict[str, LowRank], Tensor]:
    """Aggregated factors per linear layer for a prompt, and the weights ``[L, G]`` behind them."""
    w = strength * weights(mode, backbone, prompt, concepts).cpu()
    return aggregate(concepts, w, list(backbone.cross_attention)), w
