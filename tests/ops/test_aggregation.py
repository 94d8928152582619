"""Aggregation weights against plain loops over the table in the method notes and against known values."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cidm_ops.bank.concept import Concept
from cidm_ops.lowrank import LowRank
from cidm_ops.method.aggregation import RULES, aggregate, soft_weights, table
from cidm_ops.painting.weights import weights

LAYERS, POSITIONS, WIDTH = 3, 77, 12
OFFSETS = [1, 3, 6, 8]


def of_words(rule, context, keys, offsets):
    return soft_weights(context, [keys[:, a:b] for a, b in zip(offsets, offsets[1:], strict=False)], RULES[rule])


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5)


@pytest.fixture
def states():
    torch.manual_seed(3)
    return torch.randn(LAYERS, POSITIONS, WIDTH, dtype=torch.float64), torch.randn(LAYERS, POSITIONS, WIDTH, dtype=torch.float64)


def test_released_mode_equals_a_plain_loop(states):
    context, keys = states
    got = of_words("released", context, keys, OFFSETS) / 0.8
    for layer in range(LAYERS):
        raw = []
        for a, b in zip(OFFSETS, OFFSETS[1:], strict=False):
            best = [max(cosine(keys[layer, k].tolist(), context[layer, n].tolist()) for n in range(POSITIONS)) for k in range(a, b)]
            raw.append((sum(best) / len(best)) ** 4)
        for g, value in enumerate(raw):
            assert abs(float(got[layer, g]) - value / sum(raw)) < 1e-6


def test_paper_mode_equals_a_plain_loop(states):
    context, keys = states
    got = of_words("paper", context, keys, OFFSETS)
    for layer in range(LAYERS):
        squares = []
        for a, b in zip(OFFSETS, OFFSETS[1:], strict=False):
            mean = [sum(float(keys[layer, k, c]) for k in range(a, b)) / (b - a) for c in range(WIDTH)]
            best = max(sum(x * y for x, y in zip(mean, context[layer, n].tolist(), strict=True)) for n in range(POSITIONS))
            squares.append(best**2)
        norm = sum(s * s for s in squares) ** 0.5
        for g, value in enumerate(squares):
            assert abs(float(got[layer, g]) - value / norm) < 1e-6


@pytest.mark.parametrize(
    ("floor", "released", "paper"),
    [
        (0.2, (0.986, 0.002), (0.993, 0.040)),
        (0.4, (0.813, 0.021), (0.902, 0.144)),
        (0.6, (0.462, 0.060), (0.679, 0.245)),
        (0.8, (0.213, 0.087), (0.462, 0.296)),
    ],
)
def test_one_target_among_ten(floor, released, paper):
    """Similarity 1 with the target, ``floor`` with nine others: weights of target and each other, method notes 3.3."""
    similarity = torch.full((1, 1, 10), floor)
    similarity[..., 0] = 1
    keys = torch.cat([torch.zeros(1, 1, 11), torch.eye(11)[None, 1:]], 1)
    keys[0, 0, 0] = 1  # the start token, orthogonal to everything
    context = torch.zeros(1, 10, 11)
    for g in range(10):
        context[0, g, 1 + g] = similarity[0, 0, g]
        context[0, g, 0] = (1 - similarity[0, 0, g] ** 2).clamp(min=0).sqrt()
    offsets = list(range(1, 12))
    for got, want in ((of_words("released", context, keys, offsets) / 0.8, released), (of_words("paper", context, keys, offsets), paper)):
        assert abs(float(got[0, 0]) - want[0]) < 6e-4
        assert abs(float(got[0, 1]) - want[1]) < 6e-4


def concept(name: str) -> Concept:
    torch.manual_seed(len(name))
    layers = [f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn2" for i in range(LAYERS)]
    factors = {f"{layer}.{p}": LowRank(torch.randn(8, 4), torch.randn(4, 6)) for layer in layers for p in ("to_q", "to_out.0")}
    return Concept(
        name=name,
        class_word="dog",
        words=(f"<{name}.1>", f"<{name}.2>"),
        factors=factors,
        tokens={"clip_l": torch.randn(2, LAYERS, 6)},
        architecture="sd1-3x6",
        fingerprint="0",
    )


def test_exact_mode_routes_by_the_words():
    backbone: Any = SimpleNamespace(cross_attention=range(LAYERS))
    concepts = [concept("dog"), concept("cat"), concept("toy")]
    assert weights("exact", backbone, "", concepts, {"dog": 1.0, "toy": 0.5}).tolist() == [[1, 0, 0.5]] * LAYERS


def test_aggregated_factors_are_the_weighted_sum_layer_by_layer():
    concepts = [concept("dog"), concept("catty")]
    given = torch.rand(LAYERS, 2)
    layers = [f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn2" for i in range(LAYERS)]
    merged = aggregate(concepts, given, layers)
    for name, factors in merged.items():
        row = given[layers.index(name.split(".to_")[0])]
        loop = sum(row[g] * c.factors[name].delta() for g, c in enumerate(concepts))
        torch.testing.assert_close(factors.delta(), loop, atol=1e-5, rtol=0)


def test_a_concept_of_weight_zero_costs_nothing():
    concepts = [concept("dog"), concept("catty")]
    layers = [f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn2" for i in range(LAYERS)]
    given = torch.tensor([[1.0, 0.0]]).expand(LAYERS, -1)
    assert all(f.rank == 4 for f in aggregate(concepts, given, layers).values())
    assert "dog" in table(given, concepts, layers)
