"""Concept Weaver in closed form: the way of a picture up to noise and back, suppression, masks that grow, and the lock."""

import pytest
import torch

from cidm_ops.method.inversion import Trajectory, descend, invert
from cidm_ops.method.regions import RegionMask, box_mask, cells
from cidm_ops.method.weaving import covered, grow, lock, suppress
from cidm_ops.painting.config import WeaveConfig
from cidm_ops.schedule import Schedule

VARIANCE = 0.5  # of pictures that are Gaussian noise themselves, whose best denoiser is linear
LEVELS = torch.cat([torch.zeros(1), torch.logspace(-1.5, 1.2, 20)]).double()


def gaussian(x, level):
    """What the best model takes for clean where every number of a picture is Gaussian of that variance."""
    return x * VARIANCE / (VARIANCE + level**2)


def clean(count=2):
    return VARIANCE**0.5 * torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(0)).double()


def test_a_corrected_way_up_is_the_inverse_of_the_way_down():
    way = invert(clean(), LEVELS, gaussian, corrections=60)
    assert way.states.shape == (21, 2, 4, 6, 6) and torch.equal(way.states[0], clean())
    torch.testing.assert_close(descend(way.states[-1], LEVELS, gaussian), clean(), rtol=1e-9, atol=1e-9)


def test_the_plain_way_up_comes_nearer_with_more_steps_and_with_corrections():
    def error(steps, corrections=0):
        levels = torch.cat([torch.zeros(1), torch.logspace(-1.5, 1.2, steps)]).double()
        noise = invert(clean(), levels, gaussian, corrections).states[-1]
        return float((descend(noise, levels, gaussian) - clean()).square().mean().sqrt())

    assert error(80) < error(20) < error(5)
    assert error(20, 1) < 0.5 * error(20)


def test_a_picture_ends_as_noise_of_the_size_that_its_distribution_has_there():
    """The exact solution of the flow is ``x sqrt((v + s^2) / v)``."""
    levels = torch.cat([torch.zeros(1), torch.logspace(-1.5, 1.2, 400)]).double()
    found = invert(clean(), levels, gaussian, corrections=3).states[-1]
    torch.testing.assert_close(found, clean() * ((VARIANCE + levels[-1] ** 2) / VARIANCE).sqrt(), rtol=0.05, atol=0)


def test_a_trajectory_is_known_at_its_levels_exactly_and_between_them_on_a_line():
    way = invert(clean(), LEVELS, gaussian)
    for number, level in enumerate(LEVELS.tolist()):
        assert torch.equal(way.at(level), way.states[number])
    middle = float(LEVELS[3:5].mean())
    torch.testing.assert_close(way.at(middle), way.states[3:5].mean(0))
    with pytest.raises(ValueError, match="the sampler is at noise level 20, the inverted picture ends at 15.8"):
        way.at(20.0)


@pytest.mark.parametrize("levels", [[0.0], [0.1, 0.2], [0.0, 2.0, 1.0], [0.0, 1.0, 1.0]])
def test_levels_that_do_not_rise_from_0_are_refused(levels):
    with pytest.raises(ValueError, match="expected two or more that rise from 0"):
        invert(clean(), torch.tensor(levels), gaussian)


def test_what_is_told_of_progress_is_every_step():
    told = []
    invert(clean(), LEVELS, gaussian, on_step=lambda step, steps: told.append((step, steps)))
    assert told == [(i, 20) for i in range(1, 21)]


def test_suppression_of_0_and_of_what_is_the_base_changes_nothing():
    fused, plain = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(suppress(fused, plain, 0.0), fused)
    torch.testing.assert_close(suppress(plain, plain, 0.7), plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(suppress(fused, plain, 0.5) - fused, 0.5 * (fused - plain))


def region(left, right, side=64):
    return RegionMask(box_mask(left, 0.25, right, 0.75, side))


def test_regions_grow_by_cells_of_the_latent_at_any_size_of_their_masks():
    for side in (8, 16, 64, 200):
        (grown,) = grow([region(0.25, 0.5, side)], 1, 16, 16)
        wanted = torch.zeros(16, 16)
        wanted[3:13, 3:9] = 1
        assert torch.equal(cells(grown.mask, 16, 16), wanted), side


def test_nobody_grows_into_what_another_region_holds():
    left, right = region(0.0, 0.5), RegionMask(box_mask(0.5, 0.25, 1.0, 0.75, 128), 0.7, 3, 0.1)
    grown = grow([left, right], 2, 16, 16)
    own = [cells(m.mask, 16, 16) for m in grown]
    assert not (own[0] * cells(right.mask, 16, 16)).any() and not (own[1] * cells(left.mask, 16, 16)).any(), "they touch, and stay two"
    assert own[0][:, :8].sum() > cells(left.mask, 16, 16).sum(), "where nobody is, they grow"
    assert (grown[1].strength, grown[1].priority, grown[1].feather) == (0.7, 3, 0.1)
    overlapping = grow([region(0.0, 0.6), region(0.4, 1.0)], 1, 16, 16)
    for before, after in zip((region(0.0, 0.6), region(0.4, 1.0)), overlapping, strict=True):
        assert (cells(after.mask, 16, 16) >= cells(before.mask, 16, 16)).all(), "what was drawn stays"
    assert grow([left], 0, 16, 16) == [left] and grow([], 1, 16, 16) == []


def test_the_lock_is_the_template_to_the_last_bit_where_no_region_is():
    x, template = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    held, inside = lock(x, template, [region(0.0, 0.5)]), covered([region(0.0, 0.5)], 16, 16)
    assert torch.equal(held[..., inside], x[..., inside]) and torch.equal(held[..., ~inside], template[..., ~inside])
    assert inside.sum() == 8 * 8 and torch.equal(lock(x, template, []), template)


def test_every_kind_of_schedule_finds_the_timestep_of_its_levels():
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0)
    for schedule in (Schedule.of_alphas(alphas, "eps"), Schedule.of_alphas(alphas, "v"), Schedule.straight(3.0)):
        levels, timesteps = schedule.levels(7)
        assert [int(schedule.timestep_at(level)) for level in levels[:-1]] == timesteps.tolist()
        assert torch.equal(schedule.trained_levels()[timesteps[0]], levels[0])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"suppression": -0.1}, "suppression -0.1: expected 0"),
        ({"suppression": float("nan")}, "suppression nan: expected 0"),
        ({"attention": 1.5}, "keep attention 1.5: expected a part of the sampling"),
        ({"residual": -1.0}, "keep residual -1: expected a part of the sampling"),
        ({"grow": -1}, "grow -1: expected 0 or more cells"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(wrong, told):
    with pytest.raises(ValueError, match=told):
        WeaveConfig(**wrong)


def test_a_trajectory_of_two_states_is_a_line():
    way = Trajectory(torch.tensor([0.0, 2.0]), torch.stack([torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)]))
    assert float(way.at(0.5)) == 0.25
