"""Templates of the Doodle world: what is known of a rendering is what the judges of weaving find in it."""

import statistics

import pytest
import torch

from cidm_ops.benchmarks.speed.templates import cells_of, figure, overlap, psnr, templates
from cidm_ops.doodle.concepts import CONCEPTS


@pytest.fixture(scope="module")
def some():
    return templates(9)


def test_a_template_shows_a_plain_thing_of_each_concepts_class_in_its_cell(some):
    for template in some:
        count = len(template.scene.names)
        assert template.picture.shape == (3, 128, 128 * count) and template.masks.shape == (count, 128, 128 * count)
        for u, (name, mask) in enumerate(zip(template.scene.names, template.masks, strict=True)):
            assert CONCEPTS[name].class_word in template.words
            inside = mask.chunk(count, 1)
            assert inside[u].sum() > 500 and sum(float(part.sum()) for part in inside) == float(inside[u].sum())
    again = templates(9)
    assert all(torch.equal(a.picture, b.picture) and a.words == b.words for a, b in zip(some, again, strict=True))
    assert {len(template.scene.names) for template in some} == {2, 3}


def test_what_stands_in_a_cell_is_found(some):
    found = []
    for template in some:
        count = len(template.scene.names)
        for u, cell in enumerate(cells_of(template.picture, count)):
            found.append(overlap(figure(cell), template.masks[u].chunk(count, 1)[u] > 0.5))
    assert statistics.mean(found) > 0.6
    empty = torch.zeros(8, 8, dtype=torch.bool)
    assert overlap(empty, empty) == 0 and overlap(~empty, ~empty) == 1


def test_the_signal_to_noise_is_that_of_its_definition():
    a = torch.zeros(3, 4, 4)
    assert psnr(a, a + 0.2) == pytest.approx(20)
