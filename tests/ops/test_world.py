"""The Doodle world: the same pictures from the same seed, captions that say what is there, masks that cover it."""

import hashlib

import numpy as np
import pytest

from cidm_ops.doodle.concepts import CONCEPTS, examples, instance
from cidm_ops.doodle.figures import COLOURS, FIGURES
from cidm_ops.doodle.style import PLACES
from cidm_ops.doodle.world import SIZE, caption, random_scene, render
from cidm_ops.grammar import article


def test_a_seed_is_a_picture():
    pictures = np.stack([render(random_scene(i))[0] for i in range(6)])
    again = np.stack([render(random_scene(i))[0] for i in range(6)])
    assert np.array_equal(pictures, again)
    assert len({hashlib.sha256(p.tobytes()).hexdigest() for p in pictures}) == 6


def test_captions_name_every_thing_and_the_place():
    for seed in range(60):
        scene = random_scene(seed)
        text = caption(scene, np.random.default_rng(seed))
        assert all(t.words in text for t in scene.things)
        assert scene.place is None or scene.place in text


def test_all_classes_colours_and_places_occur():
    scenes = [random_scene(seed) for seed in range(400)]
    words = " ".join(t.words for s in scenes for t in s.things)
    assert all(k in words for k in (*FIGURES, *COLOURS))
    assert {s.place for s in scenes} == {*PLACES, None}
    assert {len(s.things) for s in scenes} == {1, 2, 3}


def test_a_mask_covers_its_thing_and_nothing_else():
    for name, concept in CONCEPTS.items():
        for example in examples(concept, 4):
            assert example.picture.shape == (SIZE, SIZE, 3) and example.mask.shape == (SIZE, SIZE)
            share = (example.mask > 127).mean()
            assert share == 1 if concept.style else 0.05 < share < 0.6, name
            assert concept.class_word in example.caption


@pytest.mark.parametrize("name", CONCEPTS)
def test_training_and_held_out_pictures_differ(name):
    training = {e.picture.tobytes() for e in examples(CONCEPTS[name], 6)}
    held_out = {e.picture.tobytes() for e in examples(CONCEPTS[name], 12, seed=1)}
    assert len(training) == 6 and not training & held_out


def test_the_ten_tasks_mirror_the_paper_and_any_instance_has_an_identity():
    kinds = [c.class_word for c in CONCEPTS.values()]
    assert kinds == ["dog", "duck", "cat", "backpack", "teddy bear", "painting", "dog", "drawing", "cat", "ink painting"]
    assert instance("dog", 5) == instance("dog", 5)
    assert instance("dog", 5).look != instance("dog", 6).look


@pytest.mark.parametrize("words", ["an orange dog", "a red dog", "the <toy> duck", "an ink painting", "an Ibis", "a <dog>"])
def test_words_have_their_article_once(words):
    bare = words.removeprefix("an ").removeprefix("a ")
    assert article(bare) == words and article(words) == words
