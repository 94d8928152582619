"""The photos that editing is measured on, and its figures: what they show is known, and what they say is what was counted."""

import json

import pytest
import torch

from cidm_ops.benchmarks.speed import editing
from cidm_ops.benchmarks.speed.compositions import THINGS
from cidm_ops.benchmarks.speed.photos import photos, style_photos
from cidm_ops.doodle.concepts import CONCEPTS


@pytest.fixture(scope="module")
def some():
    return photos(14)


def test_every_thing_has_its_photos_and_the_same_seed_gives_the_same(some):
    assert [photo.name for photo in some] == [*THINGS, *THINGS]
    again = photos(3)
    assert all(torch.equal(a.filled, b.filled) and a.other == b.other for a, b in zip(again, some, strict=False))
    assert not torch.equal(photos(1, seed=1)[0].filled, some[0].filled)


def test_the_two_photos_differ_where_the_mask_is_and_nowhere_else(some):
    for photo in some:
        changed = (photo.filled - photo.empty).abs().amax(0) > 0
        assert photo.empty.shape == photo.filled.shape == (3, 128, 256) and photo.mask.shape == (128, 256)
        assert not changed[:, :128].any()
        assert (changed & (photo.mask == 0)).sum() < 0.1 * changed.sum(), "whiskers and the like are no part of a silhouette"
        assert editing.silhouette(photo, photo.filled) > 0.8 > 0.01 > editing.silhouette(photo, photo.empty)


def test_the_thing_beside_is_of_another_class_and_another_colour(some):
    for photo in some:
        colour, _, kind = photo.other.partition(" ")
        assert kind != CONCEPTS[photo.name].class_word and photo.other in photo.plain and photo.other in photo.whole
        assert f"<{photo.name}>" in photo.own and "<" not in photo.word + photo.plain and colour not in photo.word


def test_photos_for_styles_say_what_they_show():
    shown = style_photos(6)
    assert {CONCEPTS[photo.name].kind for photo in shown} == {"style"} and len({photo.name for photo in shown}) == 3
    assert all((photo.drawn - photo.picture).abs().mean() > 0.02 for photo in shown)
    assert all(photo.thing in photo.own and photo.plain in photo.own and photo.picture.shape == (3, 128, 128) for photo in shown)


def test_a_hole_is_the_empty_half_or_the_grown_thing(some):
    for photo in some:
        free, over = (editing.hole_of(photo, editing.THINGS[row]) for row in ("insert", "replace"))
        assert free[:, :128].sum() == 0 and free.mean() > 0.4 * 0.9
        assert (over[photo.mask >= 0.5] == 1).all() and over.sum() > (photo.mask >= 0.5).sum() and over[:, :120].sum() == 0


def test_a_seam_is_told_by_the_gradient_on_the_edge():
    hole = torch.zeros(64, 64)
    hole[16:48, 16:48] = 1
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    assert editing.seam(noise, hole) == pytest.approx(1, abs=0.15)
    assert editing.seam(noise + hole, hole) > 3
    inner = torch.zeros(64, 64)
    inner[20:44, 20:44] = 1
    assert editing.seam(noise + inner, hole) < 1


def test_figures_are_means_over_photos_and_aims_are_told_where_their_rows_were_run():
    scores = [{"insert": {"present": present, "ia": 0.5}} for present in (1.0, 1.0, 0.0, 1.0)]
    figures = editing.summarise(scores, ["insert"])
    assert figures["insert_present"] == 0.75 and figures["insert_ia_interval"] == 0 and figures["insert_present_interval"] > 0.3
    assert editing.accepted(figures) == {"insert_there": False}
    figures |= {"insert_present": 0.85, "fast_ia": 0.54, "insert_seam": 1.3, "insert_outside": 40.0, "insert_outside_round": 40.2}
    aims = {"insert_there": True, "insert_like_fast": True, "insert_keeps_the_rest": False, "insert_seam": True}
    assert editing.accepted(figures) == aims


def test_every_aim_is_of_figures_that_a_run_writes():
    scores = ("present", "ia", "other", "seam", "silhouette", "outside", "outside_round", "ta")
    known = {f"{row}_{score}" for row in (*editing.ROWS, *editing.PHOTOS) for score in scores}
    for figure_of, beside, side, _ in editing.ACCEPTANCE.values():
        assert figure_of in known and beside in known | {""} and side in ("least", "most")


def test_a_row_that_there_is_none_of_is_refused(tmp_path):
    with pytest.raises(ValueError, match="row 'inserted': expected some of insert, insert_word"):
        editing.run(tmp_path, 3, ["inserted"])


def test_the_bench_goes_on_where_it_was_and_adds_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(editing, "STEPS", 1)
    figures = editing.run(tmp_path, 3, ["insert", "insert_place", "replace_75", "style_65"])
    for row in ("insert", "insert_place", "replace_75"):
        assert all(0 <= figures[f"{row}_{name}"] <= 1 for name in ("present", "other")) and figures[f"{row}_seam"] > 0
    assert abs(figures["insert_outside"] - figures["insert_outside_round"]) < 0.1, "away from the mask the photo's latents are kept"
    assert figures["photo_silhouette"] > 0.8 and figures["style_65_ta"] < figures["style_photo_ta"]
    assert {"insert_there", "replace_75_there"} <= figures["accepted"].keys() and "replace_there" not in figures["accepted"]
    assert (tmp_path / "things.png").is_file() and (tmp_path / "styles.png").is_file()
    kept = json.loads((tmp_path / "scores.json").read_text())
    for number in range(3):
        kept[f"thing {number}"]["insert"]["ia"] = 0.25
    (tmp_path / "scores.json").write_text(json.dumps(kept))
    again = editing.run(tmp_path, 3, ["insert", "style_50"])
    assert again["insert_ia"] == 0.25 and "style_50_ia" in again, "what is there is not painted again"
