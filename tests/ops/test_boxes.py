"""Boxes written as JSON: what is read, and what is said of those that cannot be."""

import json

import pytest
import torch

from cidm_ops.method.boxes import MOST, read_boxes
from cidm_ops.method.regions import box_mask


def box(**changes):
    return {"text": "a <dog>", "box": [0, 0, 0.5, 1]} | changes


def said(*boxes):
    with pytest.raises(ValueError) as error:
        read_boxes(boxes[0] if isinstance(boxes[0], str) else json.dumps(boxes))
    return str(error.value)


def test_a_box_is_the_region_that_it_spells_out():
    ((text, place),) = read_boxes(json.dumps([box(strength=0.5, priority=-2, feather=0.1)]))
    assert text == "a <dog>" and (place.strength, place.priority, place.feather) == (0.5, -2, 0.1)
    assert torch.equal(place.mask, box_mask(0, 0, 0.5, 1))


def test_what_is_left_out_is_as_in_a_region():
    ((_, place),) = read_boxes(json.dumps([box()]))
    assert (place.strength, place.priority, place.feather) == (1.0, 0, 0.0)


def test_an_empty_list_is_no_region():
    assert read_boxes("[]") == [] and read_boxes(" [ ]\n") == []


@pytest.mark.parametrize("count", [20, MOST])
def test_many_boxes_keep_their_order(count):
    boxes = [box(text=f"\u533a\u57df {i}", box=[i / count, 0, (i + 1) / count, 1]) for i in range(count)]
    read = read_boxes(json.dumps(boxes))
    assert [text for text, _ in read] == [f"\u533a\u57df {i}" for i in range(count)]
    assert all(place.mask.any() for _, place in read)


def test_more_than_can_be_is_refused():
    assert f"{MOST + 1} boxes" in said(*[box()] * (MOST + 1))


@pytest.mark.parametrize("text", ["", "a dog", "[{]", '[{"text": "a", "box": [0, 0, NaN, 1]}]', "[" * 100_000])
def test_what_is_no_json_is_refused_with_an_example(text):
    assert "no JSON" in (message := said(text)) and '"box": [left, top, right, bottom]' in message and len(message) < 400


def test_what_is_no_list_is_refused():
    assert "expected a list" in said(json.dumps(box())) and "null" in said("null")


@pytest.mark.parametrize(
    "second, words",
    [
        ("a dog", '"a dog"'),
        ({"text": "a"}, "no box"),
        ({}, "no text and no box"),
        (box(strenght=1), "'strenght'"),
        (box(text=3), "text is 3"),
        (box(box=[0, 0, 1]), "[0, 0, 1]"),
        (box(box="0 0 1 1"), "0 0 1 1"),
        (box(box=[0, 0, True, 1]), "true"),
        (box(box=[0, 0, "1", 1]), '"1"'),
        (box(box=[0, 0, 1.2, 1]), "right 1.2"),
        (box(box=[-0.1, 0, 1, 1]), "left -0.1"),
        (box(box=[0.5, 0, 0.5, 1]), "left 0.5"),
        (box(box=[0, 0.8, 1, 0.2]), "top 0.8"),
        (box(strength=True), "strength is true"),
        (box(strength=1.5), "from 0 to 1"),
        (box(strength=None), "strength is null"),
        (box(priority=0.5), "whole number"),
        (box(priority=101), "from -100 to 100"),
        (box(feather=0.7), "from 0 to 0.5"),
        (box(feather=-0.1), "feather is -0.1"),
    ],
)
def test_a_box_that_cannot_be_is_named(second, words):
    message = said(box(), second, box())
    assert message.startswith("box 2") and words in message and "expected" in message and len(message) < 400


def test_a_number_beyond_all_numbers_is_refused():
    assert "Infinity" in said('[{"text": "a", "box": [0, 0, 1e999, 1]}]')
    assert "1000" in said(box(box=[0, 0, 10**400, 1])) and "1000" in said(box(priority=10**400))
