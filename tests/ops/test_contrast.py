"""Contrast of pictures and texts: what its loss is exactly, and what canvases show."""

import math
import random
import re

import pytest
import torch
from torch.nn import functional as F

from cidm_ops.method.contrast import alike, contrast_loss, found_right, shared_cross_entropy
from cidm_ops.models.registry import families
from cidm_ops.training.canvases import (
    CutOut,
    Lesson,
    canvases_of,
    cut_around,
    cut_common,
    cut_lesson,
    draw_canvases,
    fitted,
    part_of,
    paste,
    without_masks,
)
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.spaces import check_contrastable

SCALE = 20.0


def unit(count: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def diagonal(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """CLIP's own loss."""
    logits, target = SCALE * images @ texts.T, torch.arange(len(images))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def test_equal_embeddings_give_the_logarithm_of_their_number_and_a_single_pair_gives_nothing():
    for count in (1, 2, 7, 64):
        same = unit(1).expand(count, -1)
        assert float(contrast_loss(same, same, range(count), SCALE)) == pytest.approx(math.log(count), abs=1e-12)
    assert float(contrast_loss(unit(1), unit(1, seed=1), ["one"], SCALE)) == 0.0


def test_with_all_concepts_different_it_is_the_loss_of_the_diagonal():
    images, texts = unit(9), unit(9, seed=1)
    torch.testing.assert_close(contrast_loss(images, texts, range(9), SCALE), diagonal(images, texts), atol=1e-12, rtol=0)
    torch.testing.assert_close(contrast_loss(3 * images, texts / 2, range(9), SCALE), diagonal(images, texts), atol=1e-12, rtol=0)


def test_rows_that_are_alike_share_the_probability():
    images, texts = unit(4), unit(4, seed=1)
    logits = SCALE * images @ texts.T
    who = ["dog", "cat", "dog", "duck"]
    shares = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]], dtype=torch.float64)
    want = (F.cross_entropy(logits, shares) + F.cross_entropy(logits.T, shares)) / 2
    torch.testing.assert_close(contrast_loss(images, texts, who, SCALE), want, atol=1e-12, rtol=0)
    all_alike = unit(1).expand(5, -1)
    assert float(contrast_loss(all_alike, all_alike, ["dog"] * 5, SCALE)) == pytest.approx(math.log(5), abs=1e-12)


def test_the_order_of_a_batch_changes_nothing():
    images, texts, who = unit(6), unit(6, seed=1), ["a", "b", "a", "c", "d", "b"]
    order = [3, 1, 5, 0, 2, 4]
    again = contrast_loss(images[order], texts[order], [who[i] for i in order], SCALE)
    torch.testing.assert_close(contrast_loss(images, texts, who, SCALE), again, atol=1e-12, rtol=0)


def test_texts_that_no_picture_shows_are_wrong_for_every_picture_and_for_nothing_else():
    images, texts, others = unit(5), unit(5, seed=1), unit(3, seed=2)
    want = F.cross_entropy(SCALE * images @ torch.cat([texts, others]).T, torch.arange(5))
    plain = F.cross_entropy(SCALE * texts @ images.T, torch.arange(5))
    torch.testing.assert_close(contrast_loss(images, texts, range(5), SCALE, others), (want + plain) / 2, atol=1e-12, rtol=0)
    assert torch.equal(contrast_loss(images, texts, range(5), SCALE, others[:0]), contrast_loss(images, texts, range(5), SCALE))
    far = contrast_loss(images[:1], texts[:1], ["one"], SCALE, others)
    assert float(far) > 0


def test_pictures_get_no_gradient_and_texts_do():
    images, texts = unit(4).requires_grad_(), unit(4, seed=1).requires_grad_()
    contrast_loss(images, texts, range(4), SCALE).backward()
    assert images.grad is None and float(texts.grad.abs().max()) > 0


def test_what_does_not_go_together_is_refused_by_name():
    with pytest.raises(ValueError, match="3 pictures, 2 texts and 3 names"):
        contrast_loss(unit(3), unit(2), range(3), SCALE)
    with pytest.raises(ValueError, match="row 1: nothing in it is right"):
        shared_cross_entropy(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))


def test_a_picture_is_found_by_the_nearest_text():
    images = torch.eye(3)
    assert found_right(images, torch.eye(3)[[1, 0, 2]], ["a", "b", "c"], ["b", "a", "c"]).tolist() == [1, 1, 1]
    assert found_right(images, torch.eye(3), ["a", "b", "c"], ["b", "a", "c"]).tolist() == [0, 0, 1]
    assert alike(["a", "b"], ["b", "b", "a"]).tolist() == [[False, False, True], [True, True, False]]


def test_a_family_without_words_of_its_own_is_refused_by_name():
    for family in families():
        if family.layerwise:
            check_contrastable(family)
        else:
            with pytest.raises(ValueError, match=f"{re.escape(family.title)} has no words of its own"):
                check_contrastable(family)


def lesson(name="rex", colour=0, masked=True, count=2) -> Lesson:
    """A picture of one colour in the middle, on black."""
    picture, mask = torch.zeros(3, 40, 60), torch.zeros(1, 40, 60)
    picture[colour, 10:30, 20:50] = 1
    mask[:, 10:30, 20:50] = 1
    return Lesson(name, "dog", Dataset([picture] * count, [""] * count, [mask] * count if masked else []))


WORDS = {"rex": ["<rex.1>", "<rex.2>"], "spot": ["<spot.1>", "<spot.2>"]}


def test_a_cut_out_is_what_the_mask_covers_and_all_of_it_without_one():
    (cut, _) = cut_lesson(lesson(), WORDS["rex"])
    assert cut.phrase == "a <rex.1> <rex.2>" and cut.picture.shape == (3, 20, 30)
    assert torch.equal(cut.picture, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 20, 30)) and bool((cut.shown == 1).all())
    assert cut_lesson(lesson(masked=False), WORDS["rex"])[0].picture.shape == (3, 40, 60)
    assert "2 of 2 pictures have no mask" in without_masks(lesson(masked=False))[0] and without_masks(lesson()) == []
    assert cut_around(torch.zeros(3, 8, 8), torch.zeros(1, 8, 8), "a dog") is None
    nothing = Lesson("rex", "dog", Dataset([torch.zeros(3, 8, 8)], [""], [torch.zeros(1, 8, 8)]))
    with pytest.raises(ValueError, match="the masks of <rex> cover nothing"):
        cut_lesson(nothing, WORDS["rex"])


def test_what_is_pasted_is_the_cut_out_on_white_and_nothing_else():
    (cut, *_) = cut_lesson(lesson(), WORDS["rex"])
    canvas = paste([cut], 64, random.Random(0))
    red = (canvas - torch.tensor([1.0, -1, -1])[:, None, None]).abs().amax(0) < 0.1
    white = (canvas == 1).all(0)
    assert 0.1 < float(red.float().mean()) < 0.9 and float((red | white).float().mean()) > 0.9
    see_through = CutOut(cut.picture, torch.zeros_like(cut.shown), "nothing")
    assert bool((paste([see_through], 64, random.Random(0)) == 1).all())


def test_the_first_of_two_stands_left():
    blue = cut_common({"blue box": [(torch.tensor([0.0, 0, 1])[:, None, None].expand(3, 9, 9).clone(), None)]})
    for seed in range(5):
        canvas = paste([cut_lesson(lesson(), WORDS["rex"])[0], *blue], 64, random.Random(seed))
        assert bool((canvas[2, :, :32] == canvas[1, :, :32]).all()), "nothing blue on the left"
        assert bool((canvas[0, :, 32:] == canvas[1, :, 32:]).all()), "nothing red on the right"


def test_a_part_is_a_quarter_named_by_its_row():
    cut = cut_lesson(lesson(), WORDS["rex"])[0]
    parts = [part_of(cut, number) for number in range(4)]
    assert [part.phrase.split(" of ")[0] for part in parts] == ["the top", "the top", "the bottom", "the bottom"]
    assert all(part.picture.shape == (3, 10, 15) for part in parts)
    hollow = CutOut(cut.picture, torch.cat([cut.shown[:, :10], torch.zeros(1, 10, 30)], 1), cut.phrase)
    assert part_of(hollow, 3) is hollow


def test_canvases_come_of_every_kind_that_can_be_and_are_the_same_for_the_same_seed():
    common = cut_common({"blue box": [(torch.rand(3, 9, 9), None)]})
    lessons = [lesson(), lesson("spot", 1)]
    canvases = canvases_of(lessons, WORDS, common, 64, 32, 0)
    again = canvases_of(lessons, WORDS, common, 64, 32, 0)
    assert [c.caption for c in canvases] == [c.caption for c in again]
    assert all(torch.equal(a.picture, b.picture) for a, b in zip(canvases, again, strict=True))
    said = [c.what for c in canvases]
    assert "a <rex.1> <rex.2>" in said
    assert "a <rex.1> <rex.2> on the left and a blue box on the right" in said
    assert "a <rex.1> <rex.2> on the left and a <spot.1> <spot.2> on the right" in said
    assert any("the top of a <spot.1> <spot.2> on the right" in text for text in said)
    assert all(set(c.about) <= {" ".join(words) for words in WORDS.values()} for c in canvases)
    alone = draw_canvases({"<rex.1> <rex.2>": cut_lesson(lessons[0], WORDS["rex"])}, [], 8, 32, random.Random(0))
    assert {c.what for c in alone} == {"a <rex.1> <rex.2>"} and alone[0].picture.shape == (3, 32, 32)


def test_large_pictures_are_made_smaller_and_small_ones_stay():
    assert fitted(lesson(), 64).data.pictures[0].shape == (3, 40, 60)
    assert fitted(lesson(), 15).data.pictures[0].shape == (3, 20, 30)
    assert fitted(lesson(), 15).data.masks[0].shape == (1, 20, 30)
