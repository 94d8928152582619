"""From a prompt and a bank to what the model needs: a layer-wise context and the aggregated factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapters import attached
from ..backbone import Backbone
from ..bank.bank import Bank, check_base
from ..bank.concept import Concept
from ..bank.mentions import Prompt
from ..causal import linear_layers
from ..lowrank import LowRank, Stack
from ..method.aggregation import Rule, aggregate, tables_of, weights
from ..tokens import Text, encode_layerwise


@dataclass(frozen=True)
class Said:
    """A prompt with its handles written out, the concepts that its words may name, and how strongly each that it mentions acts."""

    text: str
    concepts: Sequence[Concept] = ()
    strengths: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Mixture(Said):
    """What a prompt takes from a bank: the weights ``[L, G]`` of its concepts, and warnings about their base."""

    weights: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    warnings: Sequence[str] = ()

    def factors(self, backbone: Backbone) -> dict[str, LowRank]:
        """Aggregated factors per layer."""
        return aggregate(self.concepts, self.weights, list(backbone.cross_attention))


def read(bank: Bank, prompt: str) -> Said:
    """The concepts that a prompt mentions, by name: what they add up to does not depend on the order in which they were learned.

    Raises ``ValueError`` for a word no concept has and for a concept of Infusion.
    """
    said = without_infusion(bank, prompt)
    return Said(said.text, [bank.get(name) for name in sorted(said.strengths)], said.strengths)


def mix(backbone: Backbone, bank: Bank, prompt: str, mode: str = "exact", strength: float = 1.0, rule: Rule | None = None) -> Mixture:
    """``exact`` loads only the concepts in the prompt, the soft modes load all (CIDM 3.2).

    Raises ``ValueError`` for a word no concept has, for a concept of another architecture and for one of Infusion.
    """
    return mixed(backbone, bank, without_infusion(bank, prompt), mode, strength, rule)


def without_infusion(bank: Bank, prompt: str) -> Prompt:
    """A prompt for a model that paints in one stream."""
    said = bank.read(prompt)
    for name in said.strengths:
        if bank.headers[name]["method"] == "infusion":
            raise ValueError(f"<{name}> is an Infusion concept: Apply Infusion paints it, not this node; here write its class word instead")
    return said


def mixed(backbone: Backbone, bank: Bank, said: Prompt, mode: str, strength: float, rule: Rule | None) -> Mixture:
    """What a prompt without handles of Infusion takes from a bank."""
    known = [name for name, header in bank.headers.items() if header["method"] == "cidm"]
    names = sorted(said.strengths) if mode == "exact" else known
    warnings = [check_base(bank.headers[name], backbone.architecture, backbone.fingerprint) for name in names]
    concepts = [bank.get(name) for name in names]
    found = strength * weights(mode, backbone, said.text, concepts, said.strengths, rule).cpu()
    return Mixture(said.text, concepts, {n: strength * s for n, s in said.strengths.items()}, found, [w for w in warnings if w])


@torch.no_grad()
def encode(backbone: Backbone, said: Said) -> Text:
    """A prompt encoded for every layer, with what its concepts changed in the text encoders."""
    with attached(linear_layers(backbone.texts), text_deltas(said.concepts, said.strengths, backbone.device)):
        return encode_layerwise(backbone, [said.text], tables_of(said.concepts))


def text_deltas(concepts: Sequence[Concept], strengths: Mapping[str, float], device: torch.device) -> dict[str, LowRank]:
    """The weighted sum of the concepts' factors for each layer of the text encoders; concepts without a strength take no part."""
    layers: dict[str, list[tuple[LowRank, float]]] = {}
    for concept in concepts:
        if strength := strengths.get(concept.name, 0.0):
            for name, f in concept.text_factors.items():
                layers.setdefault(name, []).append((f.to(device), strength))
    return {
        name: Stack.of([f for f, _ in parts]).merged(torch.tensor([s for _, s in parts], device=device)) for name, parts in layers.items()
    }
