"""Tables in plain text: columns stand under each other."""

import pytest

from cidm_ops.text_table import text_table


def test_names_are_on_the_left_and_figures_on_the_right():
    rows = [["", "dog", "a long name"], ["IA", "65.3", "7.0"], ["forgetting", "-", "10.25"]]
    assert text_table(rows).splitlines() == [
        "             dog  a long name",
        "IA          65.3          7.0",
        "forgetting     -        10.25",
    ]


def test_rows_of_other_lengths_are_no_table():
    with pytest.raises(ValueError):
        text_table([["a", "b"], ["c"]])
