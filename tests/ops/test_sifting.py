"""Pictures that a model made are sifted: who stays, why the rest does not, and how often the originals come up beside them."""

import random

import pytest
import torch
from torch.nn import functional as F

from cidm_ops.measure.sifting import (
    ENOUGH,
    KEPT,
    OTHER,
    REPEATED,
    Sifting,
    describe_rest,
    grow_sifted,
    sift,
    sift_sheet,
    thumbnails,
)
from cidm_ops.training.dataset import Dataset, grow


def at(*degrees):
    """Unit embeddings at angles in a plane."""
    turns = torch.tensor([float(d) for d in degrees]).deg2rad()
    return torch.stack([turns.cos(), turns.sin()], 1)


def picture(number, size=32):
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(number))


def data(count, first=0, **how):
    return Dataset([picture(first + i) for i in range(count)], [f"a dog, number {first + i}" for i in range(count)], **how)


def test_one_further_off_than_the_originals_are_is_somebody_else():
    originals = at(0, 10, 20)
    bound = Sifting(slack=0.0).bound(originals)
    outer = float((originals[0] @ originals[1:].T).mean())
    assert bound == pytest.approx(outer)
    assert Sifting().bound(originals) == pytest.approx(outer - 0.05)
    found = sift(at(10, 60, 15), originals)
    assert found.verdicts == [KEPT, OTHER, KEPT] and found.kept == [0, 2] and found.bound == pytest.approx(outer - 0.05)
    assert found.likeness[0] > found.likeness[2] > found.likeness[1]
    assert "2 of 3 pictures kept (1 somebody else); likeness of at least" in found.text() and not found.remarks()


def test_the_most_alike_go_first_and_only_so_many_stay():
    found = sift(at(9, 10, 11, 30, 12), at(10, 10.1), Sifting(per_original=2, least=0.5))
    assert found.verdicts == [KEPT, KEPT, KEPT, ENOUGH, KEPT]
    assert sift(at(9, 10, 11), at(10, 10.1), Sifting(per_original=1, least=0.5)).kept == [1, 2]


def test_a_single_original_gives_no_bound_and_that_is_said():
    found = sift(at(0, 5, 80, 3), at(0), Sifting(per_original=2))
    assert found.kept == [0, 3] and found.bound is None and "a single original does not tell" in found.remarks()[0]
    bounded = sift(at(0, 5, 80, 3), at(0), Sifting(per_original=5, least=0.9))
    assert bounded.kept == [0, 1, 3] and not bounded.remarks()
    assert "none of the pictures is kept, the most alike has 0.174" in sift(at(80), at(0), Sifting(least=0.9)).remarks()[0]


def test_what_shows_the_same_as_an_original_or_as_one_that_is_kept_is_a_repetition():
    original, other = picture(0), picture(1)
    shown = thumbnails([original + 0.001, other, (other * 0.999).clamp(0, 1), picture(2)])
    found = sift(at(0, 1, 2, 3), at(0), Sifting(per_original=9), shown, thumbnails([original]))
    assert found.verdicts == [REPEATED, KEPT, REPEATED, KEPT]
    assert describe_rest(found, ["a", "b", "c", "d"], most=1) == ["a: a repetition (likeness 1.000)", "and 1 more"]


def test_originals_are_at_least_half_of_every_pass():
    for count, repeats, made, often in ((2, (), 3, 2), (1, (), 5, 5), (3, (), 2, 1), (2, (2, 1), 6, 2), (2, (), 0, 1)):
        originals = data(count, repeats=repeats, masks=[torch.ones(1, 32, 32)] * count)
        grown = grow(originals, data(8, 10), range(made))
        own = [times * often for times in originals.repeats]
        assert list(grown.repeats) == own + [1] * made and sum(own) >= made and grown.generated == made
        order = grown.order(random.Random(0))
        assert sum(i < count for i in order) * 2 >= len(order)
        assert grown.captions[count:] == [f"a dog, number {10 + i}" for i in range(made)] and len(grown.masks) == count + made
        assert originals.generated == 0 and len(originals) == count, "what came in stays as it is"


def test_a_data_set_grows_by_those_that_an_encoder_finds_alike():
    """The encoder reads the mean colour; pictures of the same are told from others by it."""
    red, blue = torch.tensor([1.0, 0.1, 0.1])[:, None, None], torch.tensor([0.1, 0.1, 1.0])[:, None, None]

    def encoder(pictures):
        return F.normalize(pictures.mean((2, 3)) + 1, dim=-1)

    originals = Dataset([red * picture(i) for i in range(3)], ["a dog"] * 3)
    made = Dataset([red * picture(10), blue * picture(11), red * picture(12), red * picture(1)], ["", "a dog at night", "a dog", ""])
    grown, sifted = grow_sifted(encoder, originals, made)
    assert sifted.verdicts == [KEPT, OTHER, KEPT, REPEATED] and len(grown) == 5
    assert torch.equal(grown.pictures[3], made.pictures[0]) and grown.captions[3:] == ["", "a dog"]
    assert sift_sheet(sifted, made.pictures).width >= 520
    with pytest.raises(ValueError, match="2 of the originals were made by a model themselves"):
        grow_sifted(encoder, grown, made)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"per_original": 0}, "0 pictures for each original: expected at least 1"),
        ({"slack": -0.1}, "slack -0.1 and least 0"),
        ({"least": 1.0}, "slack 0.05 and least 1"),
    ],
)
def test_what_cannot_be_is_named(how, error):
    with pytest.raises(ValueError, match=error):
        Sifting(**how)
