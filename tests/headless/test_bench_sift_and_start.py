"""What sifting is measured with: who is taken for an individual differs from it in one attribute, and the tower tells most of them."""

import pytest

from cidm_ops.benchmarks.speed import sift, start
from cidm_ops.doodle.concepts import CONCEPTS, instance
from cidm_ops.evaluation.doodle import RECIPE


def test_somebody_else_differs_in_one_attribute_that_can_be_seen():
    for number, kind in enumerate(("dog", "cat", "boat")):
        one = instance(kind, number)
        for attribute in sift.ATTRIBUTES:
            other = sift.changed(one, attribute, number)
            if other is not None:
                ours, theirs = vars(one.look), vars(other.look)
                assert [name for name in ours if ours[name] != theirs[name]] == [attribute] and other.name != one.name
    backpack = CONCEPTS["backpack"]
    assert backpack.look.accessory == "none" and sift.changed(backpack, "accessory_colour", 0) is None, "nothing shows it"


def test_pictures_of_an_individual_are_told_from_others(monkeypatch):
    monkeypatch.setattr(sift, "INDIVIDUALS", 3)
    figures = sift.told(sift.DoodleTower())
    assert figures["auc_others"] > 0.95 and figures["auc_body"] > 0.9
    assert {f"auc_{name}" for name in sift.ATTRIBUTES} <= figures.keys() and figures["right_kept"] > 0.8 > 0.2 > figures["others_kept"]


def test_rows_that_there_are_none_of_are_refused(tmp_path):
    with pytest.raises(ValueError, match="row 'two': expected some of told, one"):
        sift.run(tmp_path, 1, ["two"])
    with pytest.raises(ValueError, match="row 'quarter': expected some of full, half"):
        start.run(tmp_path, 1, ["quarter"])


def test_half_of_the_steps_are_enough_where_likeness_falls_by_a_hundredth_at_most():
    def row(*values):
        return [{"ia": value, "ta": 1.7} for value in values]

    figures = start.summarise({"full": row(0.5, 0.6), "nearest_half": row(0.5, 0.58)})
    assert figures["nearest_half_over_full_ia"] == -0.01 and figures["halves"] and figures["full_ia"] == 0.55
    assert not start.summarise({"full": row(0.5, 0.6), "nearest_half": row(0.5, 0.57)})["halves"]
    assert start.ROWS["half"]["steps"] * 2 == RECIPE.steps
