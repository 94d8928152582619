"""The corrected consolidation term has the invariances that the paper's literal term lacks."""

import pytest
import torch

from cidm_ops.lowrank import LowRank
from cidm_ops.method.consolidation import MODES, consolidation, earlier_bases, orthogonal_downs, overlap, shared_loss, shared_rows

OLD = LowRank(torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.randn(4, 16))
BASIS = earlier_bases([{"layer": OLD}])["layer"]
UP = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def term(mode, earlier=None):
    return consolidation(mode, [{"layer": OLD}] if earlier is None else earlier, 1e-3, torch.Generator().manual_seed(0))


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
    term("corrected").loss({"layer": LowRank(up, OLD.down)}).backward()
    assert up.grad is not None and up.grad.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_the_first_concept_has_nothing_to_respect(mode):
    assert term(mode, earlier=[]).loss({"layer": LowRank(UP, OLD.down)}) == 0


def test_released_code_equals_its_plain_loop():
    others = [{n: LowRank(randn(8, 2, seed=i), randn(2, 6, seed=i)) for n in "ab"} for i in range(3)]
    new = {n: LowRank(randn(8, 2, seed=9), randn(2, 6, seed=8)) for n in "ab"}
    orth = sum((new[n].up @ o[n].up.T).abs().mean() for o in others for n in "ab") / 6
    ones = sum(((new[n].up - 1) ** 2).mean() for n in "ab") / 2
    torch.testing.assert_close(term("released_code", others).loss(new), orth + ones)


def test_the_papers_second_step_descends_on_its_own_term():
    literal = term("paper_literal")
    new = {"layer": LowRank(UP, OLD.down)}

    def rest():
        deltas = torch.stack([OLD.delta(), new["layer"].delta()])
        return (deltas - literal.h["layer"] @ literal.w["layer"]).square().sum()

    values = [rest()]
    for _ in range(20):
        literal.after_step(new)
        values.append(rest())
    assert all(later < before for before, later in zip(values, values[1:], strict=False))
    again = term("paper_literal")
    again.load({k: v.clone() for k, v in literal.state().items()})
    assert again.loss(new) == literal.loss(new)


def test_orthogonal_downs_meet_no_earlier_row_and_end_with_a_clear_error():
    downs, generator = [], torch.Generator().manual_seed(0)
    for _ in range(4):
        rows = orthogonal_downs(downs, {"layer": 16}, 4, generator)
        downs.append({"layer": LowRank(randn(8, 4), rows["layer"])})
    rows = torch.cat([d["layer"].down for d in downs])
    torch.testing.assert_close(rows @ rows.T, torch.eye(16), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no room for 4 more .* use 16 of 16"):
        orthogonal_downs(downs, {"layer": 16}, 4, generator)


def test_the_shared_subspace_term_equals_the_projection_of_the_whole_matrix():
    earlier = [{"layer": LowRank(randn(12, 2, seed=i), randn(2, 10, seed=10 + i))} for i in range(3)]
    new = LowRank(randn(12, 2, seed=7), randn(2, 10, seed=8))
    rows = shared_rows(earlier, 3)["layer"]
    whole = torch.linalg.svd(torch.cat([e["layer"].delta() for e in earlier])).Vh[:3]
    torch.testing.assert_close(rows.T @ rows, whole.T @ whole, atol=1e-4, rtol=0)
    expected = (new.delta() @ (torch.eye(10) - rows.T @ rows)).square().sum() / new.delta().square().sum()
    torch.testing.assert_close(shared_loss({"layer": new}, {"layer": rows}), expected, atol=1e-5, rtol=1e-4)
    inside = LowRank(new.up, randn(2, 3) @ rows)
    assert shared_loss({"layer": inside}, {"layer": rows}).abs() < 1e-5
