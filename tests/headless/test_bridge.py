"""The bridge from Doodle's text encoder to its image tower: what the one that ships finds, and where it begins."""

import numpy as np
import pytest
import torch

from cidm_ops.doodle import files
from cidm_ops.doodle.training.bridge import least_squares, new_bridge, retrieval
from cidm_ops.doodle.world import caption, random_scene, render
from cidm_ops.engines.towers import load_tower
from cidm_ops.evaluation.contrast import space_of
from cidm_ops.measure.report import from_pixels
from cidm_ops.training.spaces import CaptionSide

HELD_OUT = 9_000_000  # seeds of scenes that no training drew


def test_the_bridge_that_ships_finds_captions_of_scenes_that_nobody_trained_on(backbone):
    space = space_of(backbone, load_tower("doodle"))
    assert space.read is not None and space.scale == files.SCALE and space.side == 128
    scenes = [random_scene(HELD_OUT + i) for i in range(64)]
    seen = space.embed(list(from_pixels(np.stack([render(scene)[0] for scene in scenes]))))
    said = CaptionSide(backbone, space)([caption(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)], {})
    nearest = (torch.nn.functional.normalize(seen, dim=-1) @ said.T).argmax(1)
    assert float((nearest == torch.arange(64)).float().mean()) > 0.5, "chance is 0.016"


def test_where_captions_are_a_linear_map_of_pictures_least_squares_is_that_map():
    draw = torch.Generator().manual_seed(0)
    captions, truth = torch.randn(200, 3, 16, generator=draw), torch.randn(8, 16, generator=draw)
    captions = captions[:, :1].expand(-1, 3, -1)
    pictures = torch.nn.functional.normalize(captions[:, 0] @ truth.T, dim=-1)
    found = least_squares(pictures, captions)
    assert found.shape == (8, 16)
    bridge = new_bridge()
    bridge.weight = torch.nn.Parameter(found)
    assert retrieval(bridge, pictures, captions, among=50) > 0.9
    assert retrieval(bridge, pictures, captions.flip(0), among=50) == pytest.approx(0.02, abs=0.08)
