"""Elastic weight aggregation (CIDM 3.2): how much of each concept every layer gets for a prompt.

``exact`` routes by the identity of the concept words. ``released`` is the authors' code and ``paper`` their Eq. 3; both
compare the prompt's layer-wise text states with those of all concept words, encoded together in task order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapters import block_of
from ..backbone import Backbone
from ..bank.concept import Concept
from ..lowrank import LowRank, Stack
from ..tokens import Table, encode_layerwise, words_in

MODES = ("exact", "released", "paper")
RELEASED_SCALE = 0.8  # the released code's --alpha; the paper has no scale


def released_weights(context: Tensor, keys: Tensor, offsets: Sequence[int]) -> Tensor:
    """Weights ``[L, G]`` as in the authors' code: cosine, maximum over all prompt positions, mean over a concept's words,
    fourth power, L1 norm. ``context [L, N, C]`` of the prompt, ``keys [L, K, C]`` of all words, concept g owning rows
    ``offsets[g]:offsets[g + 1]``.
    """
    cosine = torch.einsum("lkc,lnc->lkn", F.normalize(keys, dim=-1), F.normalize(context, dim=-1))
    best = cosine.amax(-1)
    similarity = torch.stack([best[:, a:b].mean(1) for a, b in zip(offsets, offsets[1:], strict=False)], 1)
    return F.normalize(similarity.pow(4), p=1, dim=1)


def paper_weights(context: Tensor, keys: Tensor, offsets: Sequence[int]) -> Tensor:
    """Weights ``[L, G]`` of Eq. 3: ``M = max over tokens of c (mean of the concept's e)^T``, ``M^2 / ||M^2||_F``."""
    mean = torch.stack([keys[:, a:b].mean(1) for a, b in zip(offsets, offsets[1:], strict=False)], 1)
    m = torch.einsum("lgc,lnc->lgn", mean, context).amax(-1)
    return F.normalize(m.square(), p=2, dim=1)


def exact_weights(prompt: str, concepts: Sequence[Concept], layers: int) -> Tensor:
    """1 for every concept whose words occur in the prompt (handles written out), 0 for the others; ``[L, G]``."""
    spoken = set(words_in(prompt))
    return torch.tensor([1.0 if spoken & set(c.words) else 0.0 for c in concepts]).expand(layers, -1)


def joint_keys(backbone: Backbone, concepts: Sequence[Concept]) -> tuple[Tensor, list[int]]:
    """Text states ``[L, 77, C]`` of all concept words in task order, and the offsets of each concept's rows.

    Raises ``ValueError`` when the words do not fit the encoder's 75 tokens: use ``exact``.
    """
    words = [w for c in concepts for w in c.words]
    if len(words) > 75:
        raise ValueError(f"{len(concepts)} concepts have {len(words)} words, the text encoder takes 75 at once: use mode 'exact'")
    keys = encode_layerwise(backbone, [" ".join(words)], tables_of(concepts)).context[0]
    offsets = [1]
    for c in concepts:
        offsets.append(offsets[-1] + len(c.words))
    return keys, offsets


def weights(mode: str, backbone: Backbone, prompt: str, concepts: Sequence[Concept]) -> Tensor:
    """Weights ``[L, G]`` of ``concepts`` for a prompt whose handles are written out. Raises ``ValueError`` for an unknown mode."""
    if mode not in MODES:
        raise ValueError(f"aggregation mode {mode!r}: expected one of {', '.join(MODES)}")
    if mode == "exact" or not concepts:
        return exact_weights(prompt, concepts, len(backbone.cross_attention))
    with torch.no_grad():
        context = encode_layerwise(backbone, [prompt], tables_of(concepts)).context[0]
        keys, offsets = joint_keys(backbone, concepts)
        return released_weights(context, keys, offsets) * RELEASED_SCALE if mode == "released" else paper_weights(context, keys, offsets)


def aggregate(concepts: Sequence[Concept], weights: Tensor, layers: Sequence[str]) -> dict[str, LowRank]:
    """``sum_g weights[l, g] * delta_g`` per linear layer, as one pair of factors; concepts of weight 0 cost nothing.

    ``layers`` are the canonical names of the L cross-attention layers in order.
    """
    index = {block_of(name): i for i, name in enumerate(layers)}
    parts: dict[str, list[tuple[LowRank, Tensor]]] = {}
    for g, concept in enumerate(concepts):
        for name, factors in concept.factors.items():
            weight = weights[index[block_of(name)], g]
            if weight != 0:
                parts.setdefault(name, []).append((factors, weight))
    return {name: Stack.of([f for f, _ in pairs]).merged(torch.stack([w for _, w in pairs])) for name, pairs in parts.items()}


def table(weights: Tensor, concepts: Sequence[Concept], layers: Sequence[str]) -> str:
    """The weights as text: a line per layer, a column per concept."""
    width = max([len(c.name) for c in concepts] + [6])
    names = [name.replace(".transformer_blocks.0.attn2", "").replace("attentions.", "") for name in layers]
    left = max(map(len, names), default=5)
    head = " " * left + "".join(f"  {c.name:>{width}}" for c in concepts)
    rows = [f"{name:<{left}}" + "".join(f"  {w:>{width}.3f}" for w in row) for name, row in zip(names, weights.tolist(), strict=True)]
    return "\n".join([head, *rows])


def tables_of(concepts: Sequence[Concept]) -> dict[str, Table]:
    """All token tables by word."""
    return {w: t for c in concepts for w, t in c.tables().items()}
