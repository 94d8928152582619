"""What a picture shows of a dog's side and coat, on renderings, where both are known."""

import numpy as np
import pytest
import torch

from cidm_ops.benchmarks.speed.standing import SIDES, coat_distances, coats_of, render_standing, sides_of
from cidm_ops.doodle.concepts import CONCEPTS
from cidm_ops.doodle.figures import COLOURS, plain
from cidm_ops.doodle.style import PLACES
from cidm_ops.measure.report import from_pixels


@pytest.mark.parametrize("side", SIDES)
def test_side_and_coat_of_a_rendered_dog(side):
    rng = np.random.default_rng(3)
    looks = [plain("dog", colour) for colour in COLOURS.values()] + [CONCEPTS["dog2"].look]
    pictures = from_pixels(np.stack([render_standing(look, PLACES[i % len(PLACES)], side, rng)[0] for i, look in enumerate(looks)]))
    assert sides_of(pictures).count(side) >= len(looks) - 1
    wanted = torch.tensor([look.body for look in looks], dtype=torch.float32)
    assert ((coats_of(pictures) - wanted).norm(dim=1) < 20).float().mean() >= 0.8
    assert coat_distances(pictures[-1:], looks[-1]) < 20
    assert coat_distances(pictures[:1], looks[0]) < 20 < coat_distances(pictures[:1], looks[-1])


def test_the_mask_covers_the_dog():
    picture, mask = render_standing(CONCEPTS["dog2"].look, "snow", "on the left", np.random.default_rng(0))
    assert picture.shape == (128, 128, 3) and mask.shape == (128, 128)
    assert mask[:, :64].astype(int).sum() > 4 * mask[:, 64:].astype(int).sum()
