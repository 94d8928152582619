"""How much of a text stays when what fills it up is cut."""

import pytest

from cidm_ops.painting.region_text import length_without_padding


@pytest.mark.parametrize(
    "words, filled, expected",
    [
        (9, 247, 64),  # as Flux.1 fills up a short prompt
        (64, 192, 64),
        (65, 191, 128),
        (250, 6, 256),  # no more than there is
        (255, 1, 256),  # a last token of its own
        (9, 0, 9),
        (9, 3, 12),
    ],
)
def test_what_fills_a_text_up_is_cut_to_a_multiple(words, filled, expected):
    assert length_without_padding([*range(2, 2 + words - 1), 1, *[0] * filled]) == expected


def test_an_empty_text_stays():
    assert length_without_padding([]) == 0
