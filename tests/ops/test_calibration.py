"""Attention calibration in numbers: what maps that are alike, apart, or empty are worth, and where its gradients lead."""

import pytest
import torch

from cidm_ops.method.calibration import binding, calibration, nearest_resolution, separation, smooth, soft_iou, stretch


def halves(side=16):
    """Two maps that cover a half of the picture each."""
    left = torch.zeros(side, side)
    left[:, : side // 2] = 1
    return torch.stack([left, 1 - left])


def test_two_equal_masks_cover_each_other_and_two_apart_share_the_smoothing_alone():
    left, right = halves()
    assert float(soft_iou(left, left)) == 1
    assert float(soft_iou(left, right)) == pytest.approx(1 / (left.sum() + right.sum() + 1))
    soft = 0.5 * left  # sum a^2 against 2 sum a - sum a^2: soft maps are never worth 1
    assert float(soft_iou(soft, soft)) < 1


def test_smoothing_keeps_a_constant_and_its_kernel_is_that_of_the_code():
    assert torch.allclose(smooth(torch.full((2, 5, 7), 0.3)), torch.full((2, 5, 7), 0.3))
    point = torch.zeros(1, 5, 5)
    point[0, 2, 2] = 1
    spread = smooth(point)[0, 1:4, 1:4]
    e = torch.exp(torch.tensor(-1.0))  # exp(-(1 / (2 * 0.5))^2)
    assert float(spread.sum()) == pytest.approx(1) and float(spread[0, 1] / spread[1, 1]) == pytest.approx(float(e))
    assert float(spread[0, 0] / spread[1, 1]) == pytest.approx(float(e * e))
    with pytest.raises(ValueError, match="1 x 4 cells: expected at least 2 x 2"):
        smooth(torch.zeros(1, 4, 1))


def test_a_map_is_stretched_from_0_to_1_and_a_constant_one_stays_finite_with_its_gradient():
    found = stretch(torch.tensor([[[2.0, 3.0], [4.0, 6.0]]]))
    assert found.tolist() == [[[0, 0.25], [0.5, 1]]]
    flat = torch.full((2, 4, 4), 0.2, requires_grad=True)
    loss = calibration(stretch(flat), stretch(flat))
    loss.backward()
    assert loss.isfinite() and flat.grad.isfinite().all()


def test_nouns_that_look_apart_cost_less_than_nouns_that_look_alike_and_one_noun_costs_nothing():
    apart, alike = halves(), halves()[:1].expand(2, -1, -1)
    assert separation(apart) < 0.2 < 0.9 < separation(alike)
    assert float(separation(apart[:1])) == 0


def test_three_nouns_are_separated_in_the_mean_of_their_pairs():
    three = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    pairs = [float(separation(three[[i, j]])) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert float(separation(three)) == pytest.approx(sum(pairs) / 3)


def test_a_modifier_follows_its_noun_and_the_noun_does_not_follow_it():
    modifiers, nouns = (torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(i), requires_grad=True) for i in range(2))
    binding(modifiers, nouns).backward()
    assert modifiers.grad.any() and nouns.grad is None


def test_free_maps_find_a_half_each():
    """Four words share the attention of every cell; the nouns begin with a slight lean, the modifiers with none."""
    lean = halves() - 0.5
    logits = torch.cat([torch.zeros(2, 16, 16), 0.5 * lean]).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(200):
        maps = stretch(logits.softmax(0))
        loss = calibration(maps[:2], maps[2:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    strong = smooth(maps.detach()).square()
    left = strong[..., :8].sum((1, 2)) / strong.sum((1, 2))
    assert left[2] > 0.8 and left[3] < 0.2, f"the nouns part: {left}"
    assert left[0] > 0.9 and left[1] < 0.1, f"the modifiers go with them: {left}"


def test_the_resolution_is_that_of_the_paper_or_the_nearest_that_there_is():
    assert nearest_resolution([64, 256, 1024]) == 256  # SD 1.5 at 512 pixels
    assert nearest_resolution([16, 64]) == 64  # Doodle
    assert nearest_resolution([64, 1024]) == 1024  # as near as 64, and finer
    with pytest.raises(ValueError, match="no cross-attention layer left a map"):
        nearest_resolution([])
