"""The bench of contrasted words: its pairs, what its scores mean, and that what is done is not done again."""

import json

import numpy as np
import pytest
import torch

from cidm_ops.benchmarks.speed import contrast
from cidm_ops.benchmarks.speed.contrast import PAIRS, SCORES, Bench, concept_named, handle, run
from cidm_ops.doodle.concepts import CONCEPTS, examples
from cidm_ops.evaluation.doodle import pictured


def test_pairs_are_two_individuals_of_one_class():
    for pair in PAIRS:
        one, other = map(concept_named, pair)
        assert one.class_word == other.class_word and one.look != other.look
    assert concept_named("teddy bear-1").name == handle("teddy bear-1") == "teddybear-1"


def test_renderings_in_the_right_order_are_present_and_swapped_ones_are_the_mate(tmp_path):
    bench = Bench(tmp_path)
    shown = {name: pictured(examples(CONCEPTS[name], 8, seed=7)) for name in ("dog", "dog2")}
    both = torch.cat([shown["dog"], shown["dog2"]], -1)
    scores = bench.score(["dog", "dog2"], both, shown)
    assert scores["present"] == 1 and scores["mate_there"] == 0 and scores["ia"] > 0.4
    swapped = bench.score(["dog2", "dog"], both, shown)
    assert swapped["present"] == 0 and swapped["mate_there"] == 1
    assert scores.keys() | {"mates"} == set(SCORES)


def test_both_are_painted_side_by_side(tmp_path, bank, monkeypatch):
    monkeypatch.setattr(contrast, "PLACES", ("in the snow",))
    monkeypatch.setattr(contrast, "NOISES", 1)
    monkeypatch.setattr(contrast, "STEPS", 1)
    assert Bench(tmp_path).painted(bank, "a <dog> on the left and a <dog2> on the right", 256).shape == (1, 3, 128, 256)


def test_scores_that_are_there_are_not_made_again(tmp_path, monkeypatch):
    for number, pair in enumerate(PAIRS):
        for row, more in (("default", 0.0), ("contrast", 0.2)):
            stem = f"{row}-{'-'.join(map(handle, pair))}-0"
            (tmp_path / f"{stem}.json").write_text(json.dumps(dict.fromkeys(SCORES, number / 10 + more)))
            np.save(tmp_path / f"{stem}.npy", np.zeros((4, 3, 128, 256), np.float32))
    monkeypatch.setattr(contrast.Bench, "retrieval", lambda bench, row, seed: 0.5)
    figures = run(tmp_path, 1, ["default", "contrast"])
    assert figures["default_present"] == pytest.approx(0.35) and figures["contrast_over_default_ta"] == pytest.approx(0.2)
    assert figures["contrast_over_default_ta_low"] == pytest.approx(0.2) and figures["contrast_retrieval"] == 0.5
    assert (tmp_path / "sheet.png").is_file()
    with pytest.raises(ValueError, match="row 'fast': expected one of default, nearest"):
        run(tmp_path, 1, ["fast"])


def test_words_of_the_ten_are_measured_as_the_study_measured_them(tmp_path, bank):
    bench = Bench(tmp_path)
    assert bench.mates(bank, ["dog", "dog2"]) > bench.mates(bank, ["dog", "duck"])
