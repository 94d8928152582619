"""Regions without a host: what the nodes promise holds through diffusers, and the command line paints them."""

import json

import pytest
import torch

from cidm_ops.__main__ import main
from cidm_ops.bank.bank import Bank
from cidm_ops.engines.diffusers import load
from cidm_ops.method.boxes import read_region
from cidm_ops.method.regions import NOWHERE, RegionMask, box_mask
from cidm_ops.models.sd import DOODLE
from cidm_ops.painting.compose import AggregationConfig
from cidm_ops.painting.composition import compose_regions
from cidm_ops.painting.config import PRESETS, NoiseEstimation
from cidm_ops.painting.paint import SamplingConfig, paint, paint_latents, unit_noise

BANK = "cidm_ops/doodle/ten"
HALVES = [read_region("0,0,0.5,1: a <dog> in the snow"), read_region("0.5,0,1,1: a <cat> in the snow")]


@pytest.fixture(scope="module")
def backbone():
    return load("doodle")


@pytest.fixture(scope="module")
def bank(pytestconfig):
    return Bank(pytestconfig.rootpath / BANK)


def latents(backbone, bank, prompt, regions, estimation=None, batch=1):
    noise = unit_noise(DOODLE, 1, batch, 128, 128)
    return paint_latents(backbone, compose_regions(backbone, bank, prompt, regions), noise, SamplingConfig(2, 3.0, estimation=estimation))


def near(a, b, part):
    assert float((a - b).abs().max()) <= part * float(b.abs().max())


def test_a_region_that_is_everywhere_is_the_ordinary_prompt(backbone, bank):
    want = latents(backbone, bank, "a <dog> in the snow", [])
    near(latents(backbone, bank, "a red boat", [("a <dog> in the snow", RegionMask(torch.ones(8, 8)))]), want, 1e-4)
    near(latents(backbone, bank, "a <dog> in the snow", [("a <cat>", RegionMask(torch.zeros(8, 8)))]), want, 1e-4)


def test_order_and_batch_do_not_matter(backbone, bank):
    one = latents(backbone, bank, "in the snow", HALVES)
    near(latents(backbone, bank, "in the snow", HALVES[::-1]), one, 1e-5)
    near(latents(backbone, bank, "in the snow", HALVES, batch=2)[:1], one, 1e-4)
    assert float((one - latents(backbone, bank, "in the snow", HALVES[:1])).abs().max()) > 1e-2


def test_an_overlap_is_shared_or_the_strongest_ones(backbone, bank):
    def painted(edge, overlap, priority=0):
        boxes = [(0.0, edge), (1 - edge, 1.0)]
        texts = ("a <dog> in the snow", "a <cat> in the snow")
        masks = [RegionMask(box_mask(left, 0.0, right, 1.0), priority=u * priority) for u, (left, right) in enumerate(boxes)]
        how = AggregationConfig(overlap=overlap)
        composition = compose_regions(backbone, bank, "in the snow", [*zip(texts, masks, strict=True)], how)
        return paint_latents(backbone, composition, unit_noise(DOODLE, 1, 1, 128, 128), SamplingConfig(2, 3.0))

    assert torch.equal(painted(0.5, "strongest"), painted(0.5, "shared"))
    assert torch.equal(painted(0.75, "strongest", 1), painted(0.75, "shared", 1)), "a higher priority wins before that"
    assert float((painted(0.75, "strongest") - painted(0.75, "shared")).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="overlap 'widest': expected one of shared, strongest"):
        AggregationConfig(overlap="widest")


def test_passes_and_places_that_are_found(backbone, bank):
    features = latents(backbone, bank, "in the snow", HALVES)
    near(latents(backbone, bank, "in the snow", HALVES, NoiseEstimation(alpha=1.0, features=True)), features, 0)
    painted = [latents(backbone, bank, "in the snow", HALVES, how) for how in (PRESETS["paper"], NoiseEstimation(bootstrap=0.6))]
    assert all(p.isfinite().all() and float((p - features).abs().max()) > 1e-2 for p in painted)
    sought = [("a <dog> and a cat", RegionMask(NOWHERE, sought=0.3)), ("a dog and a <cat>", RegionMask(NOWHERE, sought=0.3))]
    found = paint_latents(
        backbone, compose_regions(backbone, bank, "a dog and a cat", sought), unit_noise(DOODLE, 1, 1, 128, 128), SamplingConfig(4, 3.0)
    )
    assert found.isfinite().all()
    with pytest.raises(ValueError, match="region 1, 'a dog', is to be found by its concept, and has none"):
        compose_regions(backbone, bank, "", [("a dog", RegionMask(NOWHERE, sought=0.3))])


def test_the_command_line_paints_them(bank, tmp_path, capsys):
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps([{"text": "a <cat>", "box": [0.5, 0, 1, 1]}, {"text": "a cup", "box": [0, 0, 0.001, 0.001]}]))
    given = ["generate", "--bank", str(bank.folder), "--prompt", "in the snow", "--steps", "1", "--out", str(tmp_path)]
    assert main([*given, "--region", "0,0,0.5,1: a <dog>", "--regions", str(file)]) == 0
    said = capsys.readouterr()
    assert "in-the-snow-0.png" in said.out and "region 3 is smaller than a cell" in said.err
    for wrong, told in (
        ("a dog", "expected LEFT,TOP,RIGHT,BOTTOM: PROMPT"),
        ("0,0,2,1: a dog", "expected 0 <= left < right <= 1"),
        ("0,0,1,1: a <nobody>", "nobody"),
        ("nan,0,1,1: a dog", "expected 0 <= left < right <= 1"),
    ):
        assert main([*given, "--region", wrong]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    file.write_text("[1,")
    assert main([*given, "--regions", str(file)]) == 2 and "the boxes are no JSON" in capsys.readouterr().err


def test_what_was_asked_for_is_told(backbone, bank):
    hidden = [("a <dog>", RegionMask(torch.ones(8, 8))), ("a <cat>", RegionMask(torch.ones(8, 8), priority=1))]
    _, warnings = paint(backbone, bank, "", unit_noise(DOODLE, 1, 1, 64, 64), SamplingConfig(1), hidden)
    assert warnings == ["region 1 is hidden by regions of higher priority"]
