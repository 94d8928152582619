"""What sifting is measured with: who is taken for an individual differs from it in one attribute, and the tower tells most of them."""

import json

import pytest

from cidm_ops.bank.bank import Bank
from cidm_ops.benchmarks.speed import sift, start
from cidm_ops.doodle.concepts import CONCEPTS, instance
from cidm_ops.evaluation import doodle
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


def test_what_is_sifted_is_learned_from_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sift, "RECIPE", RECIPE.update(steps=1))
    monkeypatch.setattr(sift, "THINGS", ("dog",))
    monkeypatch.setattr(doodle, "PLACES", doodle.PLACES[:1])
    (tmp_path / "scores.json").write_text(json.dumps({"one dog 0": 0.5}))
    figures = sift.run(tmp_path, 1, ["one", "sifted"])
    assert figures["one"] == 0.5 and figures["sifted_over_one"] == pytest.approx(figures["sifted"] - figures["one"], abs=1e-4)
    training = Bank(tmp_path / "banks" / "sifted-0").headers["dog"]["training"]
    assert training["pictures"] == 6 and training["generated"] == 5
    (tmp_path / "scores.json").write_text(json.dumps({"one dog 0": 0.5, "sifted dog 0": 0.75}))
    assert sift.run(tmp_path, 1, ["one", "sifted"])["sifted_over_one"] == 0.25, "what is there is not learned again"


def test_a_new_individual_is_learned_after_the_ten(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "ROWS", {"nearest": {"start": "nearest", "steps": 1}})
    monkeypatch.setattr(start, "KINDS", ("dog",))
    monkeypatch.setattr(start, "PLACES", start.PLACES[:1])
    figures = start.run(tmp_path, 1, ["nearest"])
    assert {f"nearest_{name}" for name in ("ia", "ta", "present", "mates", "began")} <= figures.keys() and "halves" not in figures
    bank = Bank(tmp_path / "banks" / "nearest-dog-300")
    assert len(bank.names) == 11 and bank.headers["dog-300"]["training"].get("began_as", "dog") in ("dog", "dog2")
