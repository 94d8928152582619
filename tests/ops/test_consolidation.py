"""The corrected consolidation term has the invariances that the paper's literal term lacks."""

import torch

from cidm_ops.lowrank import LowRank
from cidm_ops.method.consolidation import consolidation_loss, earlier_bases, overlap

OLD = LowRank(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.randn(4, 16))
BASIS = earlier_bases([{"layer": OLD}])["layer"]
UP = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))


def test_scaling_the_new_factors_changes_nothing():
    torch.testing.assert_close(overlap(1000 * UP, BASIS), overlap(UP, BASIS), atol=1e-5, rtol=0)


def test_it_is_zero_for_orthogonal_factors_and_one_inside_the_old_subspace():
    outside = UP - BASIS @ (BASIS.T @ UP)
    assert overlap(outside, BASIS) < 1e-9
    assert 1 - overlap(OLD.up @ torch.randn(4, 4), BASIS) < 1e-5


def test_the_old_factors_count_by_their_subspace_only():
    other = earlier_bases([{"layer": LowRank(OLD.up @ torch.randn(4, 4), OLD.down)}])["layer"]
    torch.testing.assert_close(overlap(UP, other), overlap(UP, BASIS), atol=1e-4, rtol=0)


def test_descent_turns_the_factors_away_and_keeps_their_size():
    """The literal term of the paper shrinks the factors instead (its norm falls to a few per cent)."""
    up = UP.clone().requires_grad_()
    for _ in range(400):
        (gradient,) = torch.autograd.grad(overlap(up, BASIS), up)
        up = (up - 2 * gradient).detach().requires_grad_()
    assert overlap(up, BASIS) < 1e-3
    assert up.norm() > 0.8 * UP.norm()


def test_the_gradient_at_the_start_of_training_is_finite():
    up = torch.zeros(32, 4, requires_grad=True)
    consolidation_loss([("layer", up)], {"layer": BASIS}).backward()
    assert up.grad is not None and up.grad.isfinite().all()


def test_the_first_concept_has_nothing_to_respect():
    assert consolidation_loss([("layer", UP)], {}) == 0
