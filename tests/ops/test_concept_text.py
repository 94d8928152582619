"""What is done to a text with concepts is done to what its layers, regions and residuals read; or it is refused by name."""

import copy

import pytest
import torch
from torch.nn import functional as F

from cidm_ops.concept_text import ConceptText, row_of, states_in_layer
from cidm_ops.row_plan import RowPlan, TokenResidual

L, N, C = 3, 4, 5


def text(tokens=N, seed=0, **plan):
    layers = torch.randn(L, tokens, C, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(tokens)
    mask[1] = 1
    return ConceptText.of(layers.mean(0, keepdim=True), [RowPlan(layers, {"rex": mask}, **plan)])


@pytest.fixture(params=[False, True], ids=["grad", "inference"])
def scene(request):
    """A text with a residual and a region, and a plain one."""
    with torch.inference_mode(request.param):
        residual = TokenResidual({"a.to_v": torch.ones(2)}, torch.ones(N))
        yield text(regions=(text(8, 1),), residuals=(residual,)), torch.randn(1, N, C)


def layers(result, row=0):
    return torch.stack([states_in_layer(result, i)[row] for i in range(L)])


def test_rows_that_are_joined_bring_their_plans_and_plain_ones_none(scene):
    rich, plain = scene
    both = torch.cat([plain, rich, plain])
    assert both.plans == (None, rich.plans[0], None)
    assert torch.equal(layers(both, 1), layers(rich)) and torch.equal(layers(both, 0), plain.expand(L, -1, -1))
    assert both[1:2].plans == rich.plans and both.narrow(0, 1, 1).plans == rich.plans and both.chunk(3)[1].plans == rich.plans


def test_a_text_behind_another_is_so_in_every_layer_and_region_and_carries_nothing(scene):
    rich, plain = scene
    for parts, before in (((rich, plain), 0), ((plain, rich), N)):
        (plan,) = torch.cat(parts, 1).plans
        assert torch.equal(plan.layers, torch.cat([plain.expand(L, -1, -1) if p is plain else layers(rich) for p in parts], 1))
        assert plan.token_masks["rex"].nonzero().flatten().tolist() == [before + 1]
        assert plan.residuals[0].marks.nonzero().flatten().tolist() == list(range(before, before + N))
        assert plan.regions[0].shape == (1, 8 + N, C)


def test_zeros_are_zeros_everywhere(scene):
    rich, _ = scene
    assert type(torch.zeros_like(rich)) is torch.Tensor and not torch.zeros_like(rich).any()


def test_an_average_is_that_of_every_layer_and_with_nothing_of_one_text_it_is_the_other(scene):
    rich, plain = scene
    half = torch.mul(rich, 0.5) + torch.mul(plain, 0.5)
    assert torch.allclose(layers(half), layers(rich) / 2 + plain / 2)
    other = torch.mul(rich, 0.0) + torch.mul(plain, 1.0)
    assert torch.equal(layers(other), plain.expand(L, -1, -1)) and not other.plans[0].residuals
    assert not other.plans[0].token_masks["rex"].any() and torch.equal(other.plans[0].regions[0].plain[:, :N], plain)
    same = rich * 1.0 + plain * 0.0
    assert torch.equal(layers(same), layers(rich)) and torch.equal(torch.lerp(rich, plain, 0.0).plans[0].layers, layers(rich))
    twice = rich * 2
    assert torch.equal(layers(twice), 2 * layers(rich)) and torch.equal(twice.plans[0].residuals[0].marks, torch.full((N,), 2.0))


def test_copies_and_casts_keep_the_plans_and_a_host_that_casts_in_every_step_gets_the_same(scene):
    rich, _ = scene
    half = rich.to(torch.float16)
    assert half.plans[0].layers.dtype == torch.float16 and rich.half().plans[0] is half.plans[0]
    room = torch.empty_like(rich, dtype=torch.float16)
    room.copy_(rich)
    assert room.plans[0].key == rich.plans[0].key and room.plans[0].regions[0].dtype == torch.float16
    for same in (copy.deepcopy(rich), rich.clone(), rich.contiguous(), rich.to("cpu"), rich.detach(), rich.expand(1, -1, -1)):
        assert same.plans == rich.plans
    repeated = rich.repeat(2, 3, 1)
    assert repeated.plans[1].layers.shape == (L, 3 * N, C) and repeated.plans[0].token_masks["rex"].sum() == 3
    assert repeated.plans[0].key == rich.repeat(1, 3, 1).plans[0].key
    assert rich[:, :2].plans[0].layers.shape == (L, 2, C) and row_of(repeated, 1).plans == repeated.plans[1:]


def test_layers_that_read_a_text_get_plain_numbers(scene):
    rich, plain = scene
    for read in (F.linear(rich, torch.randn(C, C)), rich @ torch.randn(C, C), rich.mean(1), rich.reshape(1, -1), (rich - plain).abs()):
        assert type(read) is torch.Tensor


@pytest.mark.parametrize(
    "operation",
    [torch.sin, torch.flip, torch.roll, lambda t: t[0], lambda t: t.select(0, 0), lambda t: torch.zeros(1, N, C).copy_(t), lambda t: [*t]],
)
def test_what_would_lose_the_plans_is_refused_by_name(scene, operation):
    rich, _ = scene
    with pytest.raises(TypeError, match="with concepts"):
        operation(rich, *{torch.flip: ((1,),), torch.roll: (1, 1)}.get(operation, ()))


def test_texts_of_other_regions_are_no_single_text(scene):
    rich, _ = scene
    with pytest.raises(ValueError, match="texts of 1 and 2 regions"):
        torch.cat([rich, text(regions=(text(8), text(8)))], 1)
