"""What the bench of scenes says of the ways beside each other: their time, and which of them no other one beats."""

from pathlib import Path

import pytest

from cidm_ops.benchmarks.speed import scenes


def test_the_time_of_a_way_is_the_median_over_scenes_of_that_of_the_plain_prompt():
    scores = {f"plain {i}": [{"seconds": 2.0}] for i in range(3)} | {f"fast {i}": [{"seconds": s}] for i, s in enumerate((2.2, 2.0, 9.0))}
    figures = {}
    scenes.add_time(figures, "fast", 4, scores, [0, 1, 2])
    assert figures == {"fast_time_4": 1.1}
    del scores["plain 0"], scores["fast 1"][0]["seconds"]  # painted before times were kept, and without the plain prompt
    figures = {}
    scenes.add_time(figures, "fast", 4, scores, [0, 1, 2])
    assert figures == {"fast_time_4": 4.5}
    scenes.add_time(figures, "fast", 3, scores, [0, 1])
    assert "fast_time_3" not in figures, "nothing is said where nothing is known"


def test_the_frontier_has_the_ways_that_no_other_one_beats():
    found = {"plain": (0.15, 1.0), "hooks": (0.9, 4.5), "fast": (0.89, 1.05), "tenth": (0.94, 1.12), "paper": (0.96, 4.0)}
    told = scenes.beside_time(found)
    assert told == {"frontier": ["plain", "fast", "tenth", "paper"], "aim": ["tenth"]}
    assert scenes.beside_time({"fast": (0.9, 1.0), "auto": (0.9, 1.0)})["frontier"] == ["fast", "auto"], "equals do not beat each other"


def test_a_row_that_there_is_none_of_is_refused(tmp_path):
    with pytest.raises(ValueError, match="row 'slow': expected some of plain, merged, hooks"):
        scenes.run(Path("nowhere"), tmp_path, rows=["slow"])
