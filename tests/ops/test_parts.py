"""The parts of individuals: labels say what the renderer draws, and a score counts what a look has and nothing else."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cidm_ops.doodle.concepts import CONCEPTS
from cidm_ops.doodle.figures import ACCESSORIES, FIGURES, MARKINGS, WHITE, Look, individual, plain
from cidm_ops.doodle.training.parts import draw_labels, lone_individual, parts_scene, scene_labels
from cidm_ops.doodle.world import Scene, Thing, render
from cidm_ops.engines.parts import (
    KINDS,
    PALETTE,
    PARTS,
    SEEN,
    UNTOLD,
    PartsJudge,
    Reading,
    fingerprint_of,
    labels_of,
    load_judge,
    right_parts,
)
from cidm_ops.evaluation.parts import is_flat, judged, score_parts

NAMES = list(PARTS)


def pixels_of(look: Look) -> dict[tuple[int, ...], int]:
    """How many pixels of each of the palette's colours are in the rendering of a look on an empty wall, exactly."""
    picture, masks = render(Scene((Thing(look, look.kind, 64, 64, 44),), None))
    inside = picture[masks[0] > 250]
    return {rgb: int((inside == rgb).all(1).sum()) for rgb in PALETTE}


@pytest.mark.parametrize("kind", FIGURES)
@pytest.mark.parametrize("marking", MARKINGS)
def test_labels_say_what_the_renderer_draws(kind, marking):
    """Every colour that is told is in the picture; of a pattern or an accessory that is not there or cannot be seen there is nothing to
    tell.
    """
    body, accent, mark, wear = PALETTE[0], PALETTE[4], PALETTE[9], PALETTE[10]
    for accessory in ACCESSORIES:
        look = Look(kind, body, accent, marking, mark, accessory, wear)
        labels, drawn = dict(zip(NAMES, labels_of(look), strict=True)), pixels_of(look)
        assert PALETTE[labels["body"]] == body and drawn[body] >= SEEN
        assert (labels["accent"] != UNTOLD) == (drawn[accent] >= SEEN), (accessory, drawn[accent])
        assert labels["accent"] == UNTOLD or PALETTE[labels["accent"]] == accent
        assert ACCESSORIES[labels["accessory"]] == accessory
        assert (labels["accessory_colour"] != UNTOLD) == (accessory != "none") == (drawn[wear] > 0)
        assert accessory == "none" or PALETTE[labels["accessory_colour"]] == wear
        assert (labels["marking_colour"] != UNTOLD) == (drawn[mark] >= SEEN), (accessory, drawn[mark])
        assert marking == "none" or (labels["marking"] == UNTOLD) == (drawn[mark] < SEEN)
        assert labels["marking"] == UNTOLD or MARKINGS[labels["marking"]] == marking
        assert labels["marking_colour"] == UNTOLD or PALETTE[labels["marking_colour"]] == mark


def test_what_is_told_can_be_seen_whatever_the_proportions():
    for seed in range(60):
        look = individual(list(FIGURES)[seed % len(FIGURES)], np.random.default_rng(seed))
        labels, drawn = labels_of(look), pixels_of(look)
        told = [PALETTE[label] for name, label in zip(NAMES, labels, strict=True) if PARTS[name] == len(PALETTE) and label != UNTOLD]
        assert min(drawn[rgb] for rgb in told) > 5, look


def test_a_flower_hides_the_patch_of_a_cat():
    """So the cat of the ten is not judged by a pattern that its own renderings hardly show."""
    labels = labels_of(CONCEPTS["cat"].look)
    assert labels[NAMES.index("marking")] == labels[NAMES.index("marking_colour")] == UNTOLD
    assert labels[NAMES.index("accessory")] == ACCESSORIES.index("flower")


def test_a_scene_has_the_labels_of_its_things():
    for seed in range(40):
        scene = parts_scene(seed)
        there, parts = scene_labels(scene)
        assert {KINDS[k] for k in there.nonzero()[0]} == {thing.look.kind for thing in scene.things}
        for thing in scene.things:
            assert (parts[KINDS.index(thing.look.kind)] == labels_of(thing.look)).all()
        assert (parts[there == 0] == UNTOLD).all()
        stored = draw_labels(seed)
        assert (stored[:, 0] == there).all() and (stored[:, 1:].astype(int) - 1 == parts).all(), "as they are kept on disk"


def test_a_colour_that_is_none_of_the_palette_is_not_told():
    labels = labels_of(plain("dog", PALETTE[3]))
    assert labels[NAMES.index("body")] == 3 and labels[NAMES.index("accent")] == UNTOLD
    assert labels[NAMES.index("marking_colour")] == labels[NAMES.index("accessory_colour")] == UNTOLD


def perfect(scenes: list[Scene]) -> Reading:
    """The reading of a judge that is never wrong."""
    there, parts = (torch.from_numpy(np.stack(x)) for x in zip(*map(scene_labels, scenes), strict=True))
    logits = {name: torch.nn.functional.one_hot(parts[..., i].clamp(min=0), n).float() for i, (name, n) in enumerate(PARTS.items())}
    return Reading(2 * there - 1, logits)


def test_right_is_right_wrong_is_wrong_and_what_is_not_there_does_not_count():
    scenes = [lone_individual(seed) for seed in range(12)]
    looks = [scene.things[0].look for scene in scenes]
    kinds, labels = [look.kind for look in looks], np.stack([labels_of(look) for look in looks])
    reading = perfect(scenes)
    right = right_parts(reading, kinds, labels)
    assert torch.equal(right.isnan(), torch.from_numpy(labels == UNTOLD)) and bool((right.nan_to_num(1) == 1).all())
    assert score_parts(right).mean.value == 1

    others = [replace(look, accessory="hat" if look.accessory != "hat" else "star") for look in looks]
    wrong = right_parts(reading, kinds, np.stack([labels_of(look) for look in others]))
    assert bool((wrong[:, NAMES.index("accessory")] == 0).all()) and bool((wrong[:, NAMES.index("body")] == 1).all())

    absent = right_parts(Reading(-reading.there, reading.parts), kinds, labels)
    assert bool((absent.nan_to_num(0) == 0).all()), "where the class is not there, none of its parts is"


def test_a_score_is_the_share_of_what_a_look_has():
    right = torch.tensor([[1, 1, 1, math.nan, 0, math.nan], [1, 0, 1, math.nan, 0, math.nan]])
    score = score_parts(right)
    assert score.values.tolist() == [0.75, 0.5] and score.mean.value == pytest.approx(0.625)
    assert score.parts == {"body": 1.0, "accent": 0.5, "marking": 1.0, "accessory": 0.0}


def test_styles_have_no_parts_and_their_pictures_are_not_judged():
    assert {name for name in CONCEPTS if judged(name)} == {name for name, concept in CONCEPTS.items() if concept.look}
    assert not judged("rex")
    assert is_flat("a <dog> next to a red cup, flat vector art") and is_flat("a photo of a <dog>")
    assert not any(map(is_flat, ("a painting of a <dog>", "a pencil drawing of a <dog>", "A <dog>, ink")))


def test_a_judge_comes_back_from_its_file_and_other_files_are_refused(tmp_path):
    from cidm_ops.doodle.training.loop import save_tensors
    from cidm_ops.doodle.training.parts import save_judge

    torch.manual_seed(0)
    judge = PartsJudge(8)
    save_judge(judge, tmp_path / "parts.safetensors")
    again = load_judge(tmp_path / "parts.safetensors")
    assert fingerprint_of(again) == fingerprint_of(load_judge(tmp_path / "parts.safetensors")) != fingerprint_of(PartsJudge(8))
    pictures = torch.rand(2, 3, 128, 128) * 2 - 1
    one, other = judge.read(pictures), again.read(pictures)
    assert torch.allclose(one.there, other.there, atol=1e-2) and one.parts["body"].shape == (2, len(KINDS), len(PALETTE))

    with pytest.raises(FileNotFoundError, match="no such judge of parts"):
        load_judge(tmp_path / "none.safetensors")
    save_tensors({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is no judge of parts"):
        load_judge(tmp_path / "x.safetensors")
    save_tensors({"stages.0.0.weight": torch.zeros(8, 3, 4, 4)}, tmp_path / "y.safetensors", {"cidm.parts": "1"})
    with pytest.raises(ValueError, match="is damaged, or a judge of parts of another version"):
        load_judge(tmp_path / "y.safetensors")


def test_individuals_wear_the_palette():
    for seed in range(30):
        look = individual("cat", np.random.default_rng(seed))
        assert {look.body, look.accent, look.marking_colour, look.accessory_colour} <= set(PALETTE)
    assert WHITE in PALETTE
