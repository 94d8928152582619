"""Regions that are found: whose words a piece of the picture looks at."""

import pytest
import torch

from cidm_ops.method.finding import regions_from_attention
from cidm_ops.painting.scope import inserted_at


def peak(x, y, size=12, width=2.0, height=1.0):
    row = torch.arange(size)
    return height * torch.exp(-((row[:, None] - y) ** 2 + (row[None] - x) ** 2) / (2 * width**2))


def test_each_region_is_found_around_its_peak_and_none_overlaps():
    masks = regions_from_attention(torch.stack([0.2 * peak(2, 6), 5.0 * peak(9, 5)]))
    assert masks[0, 6, 2] == 1 and masks[1, 5, 9] == 1 and float(masks.sum(0).max()) == 1
    assert not masks[:, 0].any(), "what nobody looks at is the global prompt's"


def test_a_far_second_peak_is_left_out():
    masks = regions_from_attention(torch.stack([peak(2, 6) + 0.6 * peak(11, 11, width=0.8), peak(7, 6)]))
    assert masks[0, 6, 2] == 1 and masks[0, 11, 11] == 0


@pytest.mark.parametrize(
    ("ids", "without", "found"),
    [
        ([1, 5, 7, 8, 9, 2], [1, 5, 9, 2], [2, 3]),
        ([5, 7, 9, 0, 0, 0], [5, 9, 0, 0, 0, 0], [1]),  # filled up to one length
        ([5, 7, 7, 9], [5, 7, 9], [2]),  # a word that stands twice in a row
        ([7, 9], [9], [0]),
        ([5, 7], [5], [1]),
        ([5, 9, 0], [5, 9, 0], []),
    ],
)
def test_the_tokens_of_a_word_are_those_that_the_text_without_it_lacks(ids, without, found):
    assert list(inserted_at(ids, without)) == found
