"""The bench of concepts from one picture: what its pictures show, what its scores mean, and that what is done is not done again."""

import json

import numpy as np
import pytest
import torch

from cidm_ops.benchmarks.speed.calibrate import PAIRS, SCORES, SHOT_IN, Bench, run, shot_of
from cidm_ops.doodle.concepts import CONCEPTS, examples
from cidm_ops.evaluation.doodle import pictured


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_a_pair_stands_side_by_side_in_its_one_picture_and_is_of_two_classes(number):
    pair = PAIRS[number]
    shot = shot_of(pair, SHOT_IN[number], number)
    assert len({CONCEPTS[name].class_word for name in pair}) == 2 and len(shot.data) == 1
    middles = [float((shot.masks[name][0][0].mean(0) * torch.arange(128)).sum() / shot.masks[name][0][0].mean(0).sum()) for name in pair]
    assert middles[0] < 60 < 68 < middles[1]
    assert f"{CONCEPTS[pair[0]].class_word} on the left and {CONCEPTS[pair[1]].class_word} on the right" in shot.data.captions[0]


def test_renderings_of_a_concept_are_like_it_and_not_like_the_other(tmp_path):
    bench = Bench(tmp_path)
    shown = pictured(examples(CONCEPTS["duck"], 8, seed=7))
    scores = bench.score(shown, "duck", "dog2")
    assert scores["present"] == 1 and scores["other_present"] == 0 and scores["ia"] > 0.4 > 0.2 > scores["other"]
    assert scores.keys() == set(SCORES)


def test_scores_that_are_there_are_not_made_again_and_differences_are_of_the_same_pair(tmp_path):
    for number, pair in enumerate(PAIRS):
        for row, more in (("joint", 0.0), ("calibrated", 0.2)):
            stem = f"{row}-{'-'.join(pair)}-0"
            scores = [dict.fromkeys(SCORES, number / 10 + more) for _ in pair]
            (tmp_path / f"{stem}.json").write_text(json.dumps(scores))
            for name in pair:
                np.save(tmp_path / f"{stem}-{name}.npy", np.zeros((4, 3, 128, 128), np.float32))
    figures = run(tmp_path, 1, ["joint", "calibrated"])
    assert figures["joint_ia"] == pytest.approx(0.25) and figures["calibrated_over_joint_ta"] == pytest.approx(0.2)
    assert figures["calibrated_over_joint_ta_low"] == pytest.approx(0.2), "pairs differ, differences do not"
    assert (tmp_path / "sheet.png").is_file()
    with pytest.raises(ValueError, match="row 'fast': expected one of joint, calibrated"):
        run(tmp_path, 1, ["fast"])
