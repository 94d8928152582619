"""The place of a picture that is edited: cut out, shown to a model, and put back with every other pixel as it was."""

import pytest
import torch

from cidm_ops.method.editing import feathered, find_place, resize


def mask_of(height, width, top, bottom, left, right):
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


def pictures(height, width, count=1):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_a_place_is_the_mask_with_a_margin_in_whole_cells():
    place = find_place(mask_of(256, 256, 100, 140, 60, 80), margin=0.5)
    assert (place.height, place.width) == (80, 64) and place.shown == (80, 64)  # 40 + 2 * 20, and 60 up to a whole cell
    assert place.top <= 80 and place.top + place.height >= 160 and place.left <= 40 and place.left + place.width >= 100
    assert find_place(mask_of(256, 256, 0, 256, 0, 256)).height == 256


@pytest.mark.parametrize(("top", "left"), [(0, 0), (200, 236), (0, 236)])
def test_it_stays_within_the_picture(top, left):
    place = find_place(mask_of(256, 256, top, top + 56, left, left + 20), margin=0.5)
    assert place.top >= 0 and place.left >= 0 and place.top + place.height <= 256 and place.left + place.width <= 256
    assert place.height % 8 == 0 and place.width % 8 == 0


def test_it_is_shown_at_a_size_that_suits_the_model():
    place = find_place(mask_of(1000, 1600, 400, 500, 300, 500), margin=0.25, size=512)
    height, width = place.shown
    assert height % 8 == 0 and width % 8 == 0 and height * width == pytest.approx(512**2, rel=0.03)
    assert height / width == pytest.approx(place.height / place.width, rel=0.05)
    assert place.cut(pictures(1000, 1600)).shape == (1, 3, *place.shown)


def test_a_picture_that_has_no_whole_cells_can_be_edited_to_its_edges():
    place = find_place(mask_of(130, 130, 0, 130, 0, 130))
    assert (place.height, place.width) == (130, 130) and place.shown == (128, 128)
    assert place.put_back(pictures(130, 130), torch.zeros(1, 3, 128, 128), torch.ones(130, 130)).max() == 0


def test_what_is_not_edited_stays_to_the_last_bit():
    mask, old = mask_of(120, 160, 40, 72, 50, 90), pictures(120, 160)
    for size in (0, 96):
        place = find_place(mask, size=size)
        back = place.put_back(old, torch.zeros(1, 3, *place.shown), feathered(mask, 8))
        weight = feathered(mask, 8)
        assert torch.equal(back[..., weight == 0], old[..., weight == 0])
        assert back[..., mask == 1].abs().max() < 1e-6 and weight.shape == mask.shape


def test_what_comes_back_unchanged_is_the_picture():
    """Without another size it is the same to rounding of the soft edge, and inside to the last bit."""
    mask, old = mask_of(120, 160, 40, 72, 50, 90), pictures(120, 160)
    place = find_place(mask)
    assert torch.equal(place.put_back(old, place.cut(old), feathered(mask, 8)), old)


def test_the_edge_fades_over_so_many_pixels():
    mask = mask_of(64, 64, 24, 40, 24, 40)
    weight = feathered(mask, 8)
    assert (weight[mask == 1] == 1).all()
    row = weight[32]
    assert (row[:16] == 0).all() and (row[16:24].diff() > 0).all() and torch.equal(feathered(mask, 0), mask)
    left = feathered(mask_of(64, 64, 0, 64, 0, 20), 8)  # at the edge of the picture nothing fades
    assert (left[:, :20] == 1).all()


def test_several_pictures_go_back_into_one():
    mask, old = mask_of(64, 64, 16, 32, 16, 32), pictures(64, 64)
    place = find_place(mask)
    back = place.put_back(old, torch.zeros(3, 3, *place.shown), feathered(mask, 0))
    assert back.shape == (3, 3, 64, 64) and torch.equal(back[0], back[2]) and torch.equal(old, pictures(64, 64))


def test_another_size_adds_no_values():
    assert resize(pictures(20, 20).round(), (33, 47)).min() >= 0 and resize(pictures(20, 20).round(), (33, 47)).max() <= 1


@pytest.mark.parametrize(
    ("mask", "how", "error"),
    [
        (torch.zeros(8, 8), {}, "the mask covers nothing"),
        (torch.full((8, 8), 0.4), {}, "the mask covers nothing"),
        (torch.ones(8, 8), {"margin": -1.0}, "margin -1 and size 0: expected 0 or more"),
        (torch.ones(8, 8), {"size": -8}, "margin 0.5 and size -8"),
    ],
)
def test_what_cannot_be_is_named(mask, how, error):
    with pytest.raises(ValueError, match=error):
        find_place(mask, **how)
