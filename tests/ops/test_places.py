"""The map of regions: every region in its colour where it holds, its number in it, its prompt below, for masks of any shape."""

import numpy as np
import pytest
import torch
from PIL import Image

from cidm_ops.measure.pictures import MARGIN, PAPER, SERIES
from cidm_ops.measure.places import LONGER, largest_rectangle, region_map
from cidm_ops.method.regions import RegionMask, box_mask

LEFT, RIGHT = RegionMask(box_mask(0, 0, 0.5, 1)), RegionMask(box_mask(0.5, 0, 1, 1))


def at(picture, x, y, high=LONGER):
    """The mean colour around a part of a map whose width is the longer side."""
    x, y = MARGIN + x * LONGER, MARGIN + y * high
    return np.asarray(picture.crop((int(x) - 5, int(y) - 5, int(x) + 5, int(y) + 5)), float).mean((0, 1))


def hue(colour):
    """Which colour of the palette it is likest, whatever its strength."""
    tint = np.array(colour) - np.mean(colour)
    return int(np.argmax([np.dot(tint, s - s.mean()) / np.linalg.norm(s - s.mean()) for s in np.array(SERIES, float)]))


def test_every_region_has_its_colour_where_it_is():
    picture = region_map([("a <dog>", LEFT), ("a <cat>", RIGHT)])
    assert hue(at(picture, 0.25, 0.7)) == 0 and hue(at(picture, 0.75, 0.7)) == 1
    for colour in SERIES[:2]:
        assert (np.asarray(picture) == colour).all(-1).sum() > 2000, "an outline and two numbers"


def test_the_winner_of_an_overlap_is_seen_and_strength_fades():
    everywhere = box_mask(0, 0, 1, 1)
    picture = region_map([("a", RegionMask(everywhere, priority=1)), ("b", RegionMask(everywhere))])
    assert hue(at(picture, 0.25, 0.7)) == hue(at(picture, 0.75, 0.7)) == 0
    whole, faint = (at(region_map([("a", RegionMask(everywhere, s))]), 0.6, 0.7) for s in (1.0, 0.3))
    assert np.ptp(whole) > 2 * np.ptp(faint)


def test_a_mask_of_any_shape_is_drawn_and_shapes_the_map():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 100), torch.linspace(-2, 2, 200), indexing="ij")
    ring = ((x**2 + y**2 < 0.9) & (x**2 + y**2 > 0.3)).float()
    picture = region_map([("a ring", RegionMask(ring)), ("a box", RegionMask(box_mask(0, 0, 0.1, 0.1)))])
    assert picture.width - 2 * MARGIN == LONGER
    assert np.ptp(at(picture, 0.5, 0.5, LONGER / 2)) < 8 < np.ptp(at(picture, 0.5, 0.88, LONGER / 2))


def test_over_a_picture_it_has_the_pictures_shape_and_colours():
    red = Image.new("RGB", (150, 300), (255, 0, 0))
    picture = region_map([("a", RegionMask(box_mask(0, 0, 1, 0.3)))], red)
    assert picture.width == LONGER // 2 + 2 * MARGIN
    seen = np.asarray(picture)[MARGIN + LONGER * 3 // 4, MARGIN + 100]
    assert seen[0] == 255 and 60 < seen[1] == seen[2] < 160, "dimmed"


def test_twenty_regions_with_long_prompts_stay_on_the_sheet():
    cells = [box_mask(i % 5 / 5, i // 5 / 4, (i % 5 + 1) / 5, (i // 5 + 1) / 4) for i in range(20)]
    picture = region_map([("word " * 300 + "w" * 500, RegionMask(mask, 0.5, 2, 0.1)) for mask in cells])
    seen = np.asarray(picture)
    assert picture.width == LONGER + 2 * MARGIN and picture.height < 4000
    assert (seen[:, -12:] == PAPER).all() and (seen[-10:] == PAPER).all() and (seen[:, :12] == PAPER).all()


@pytest.mark.parametrize("mask", [torch.zeros(64, 64), box_mask(0.999, 0.999, 1, 1), torch.ones(1, 1), torch.full((8, 8), 0.3)])
def test_a_region_that_is_hardly_there_is_in_the_list(mask):
    above = region_map([]).height
    assert region_map([("a", RegionMask(mask)), ("", RegionMask(mask))]).height > above + 60


@pytest.mark.parametrize("rows", [["0"], ["1"], ["010", "111", "010"], ["1101", "1101", "0111"], ["11", "11"], ["1011", "1111", "1111"]])
def test_the_largest_rectangle_is_the_largest(rows):
    cells = np.array([[c == "1" for c in row] for row in rows])
    x0, y0, x1, y1 = largest_rectangle(cells)
    areas = [
        (d - b) * (c - a)
        for a in range(cells.shape[1])
        for c in range(a + 1, cells.shape[1] + 1)
        for b in range(cells.shape[0])
        for d in range(b + 1, cells.shape[0] + 1)
        if cells[b:d, a:c].all()
    ]
    assert (x1 - x0) * (y1 - y0) == max(areas, default=0) and cells[y0:y1, x0:x1].all()
