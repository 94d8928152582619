"""Weaving without a host: what is the template's stays the template's to the last bit, and what is switched off is Paint in Regions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cidm_ops.__main__ import main
from cidm_ops.bank.bank import Bank
from cidm_ops.method.boxes import read_region
from cidm_ops.method.inversion import descend
from cidm_ops.method.regions import NOWHERE, RegionMask
from cidm_ops.models.sd import DOODLE
from cidm_ops.painting.compose import ParsedPrompt, encode
from cidm_ops.painting.composition import compose_regions
from cidm_ops.painting.config import NoiseEstimation, WeaveConfig
from cidm_ops.painting.paint import SamplingConfig, paint, paint_latents, predictor, unit_noise, weave
from cidm_ops.painting.weaving import denoiser_at, invert_picture, noise_of, template_of, woven
from cidm_ops.schedule import Schedule

SOURCE = "a dog and a cat in the snow"
HALVES = [read_region("0,0.2,0.5,1: a <dog> in the snow"), read_region("0.5,0.2,1,1: a <cat> in the snow")]
STEPS = 4
OFF = WeaveConfig(attention=0, residual=0, lock=False, grow=0)


@pytest.fixture(scope="module")
def clean(backbone, tmp_path_factory):
    nothing = Bank(tmp_path_factory.mktemp("nothing"))
    return backbone.encode_image(paint(backbone, nothing, SOURCE, unit_noise(DOODLE, 5, 1, 128, 128), SamplingConfig(6, 2.0))[0])


@pytest.fixture(scope="module")
def picture(backbone, clean):
    return invert_picture(backbone, encode(backbone, ParsedPrompt(SOURCE)), clean, STEPS)


def template(backbone, picture, **how):
    return template_of(backbone, picture, WeaveConfig(**how))


def latents(backbone, bank, woven_into, regions=HALVES, prompt="in the snow", batch=1):
    schedule = backbone.schedule
    noise = noise_of(woven_into.picture.trajectory, schedule).repeat(batch, 1, 1, 1)
    composition = compose_regions(backbone, bank, prompt, regions)
    return paint_latents(backbone, composition, noise, SamplingConfig(STEPS, 3.0, template=woven_into))


def near(a, b, part):
    assert float((a - b).abs().max()) <= part * float(b.abs().max())


def test_with_everything_off_it_is_regions_from_the_same_noise(backbone, bank, picture):
    off = template_of(backbone, picture, OFF)
    composition = compose_regions(backbone, bank, "in the snow", HALVES)
    plainly = paint_latents(backbone, composition, noise_of(picture.trajectory, backbone.schedule), SamplingConfig(STEPS, 3.0))
    assert torch.equal(latents(backbone, bank, off), plainly)
    for one in ({"suppression": 0.5}, {"attention": 0.5}, {"residual": 0.5}, {"lock": True}, {"grow": 2}):
        changed = latents(backbone, bank, template_of(backbone, picture, replace(OFF, **one)))
        assert float((changed - plainly).abs().max()) > 1e-2, one


def test_what_no_region_covers_is_the_template_to_the_last_bit(backbone, bank, picture, clean):
    assert torch.equal(latents(backbone, bank, template(backbone, picture), regions=[]), clean)
    found = latents(backbone, bank, template(backbone, picture, grow=0))
    assert torch.equal(found[..., :3, :], clean[..., :3, :]) and not torch.equal(found[..., 4:, :], clean[..., 4:, :])
    grown = latents(backbone, bank, template(backbone, picture, grow=1))
    assert torch.equal(grown[..., :2, :], clean[..., :2, :]) and not torch.equal(grown[..., 2, :], clean[..., 2, :])


def answers(backbone, scene, text, x, step=300):
    """The predictions of a scene for ``x``, and what its last row, the template's, was."""
    seen = []
    watch = backbone.unet.register_forward_hook(lambda module, args, output: seen.append(output.sample))
    try:
        predicted = predictor(backbone, scene)(x, torch.tensor([step] * len(x)), text, None, 1)
    finally:
        watch.remove()
    return predicted, seen[0]


def test_the_template_is_what_the_plain_model_sees_whatever_is_woven_into_it(backbone, bank, picture):
    schedule = backbone.schedule
    level = schedule.trained_levels()[300]
    own = schedule.scale_input(picture.trajectory.at(float(level)), level)
    plainly = backbone.predict(own, torch.tensor([300]), picture.text)
    rows, x = [], torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    for names in ("dog cat", "cat2 duck"):
        left, right = names.split()
        places = [(f"a <{name}> in the snow", place) for name, (_, place) in zip((left, right), HALVES, strict=True)]
        composition = compose_regions(backbone, bank, "in the snow", places)
        text = encode(backbone, composition.whole, [encode(backbone, region.mix) for region in composition.regions])
        predicted, output = answers(backbone, woven(composition, template(backbone, picture, suppression=0.3)), text.rows, x)
        assert len(output) == 2 and torch.equal(output[:1], predicted)
        rows.append(output[1:])
    assert torch.equal(*rows), "what is fused does not reach the template"
    near(rows[0], plainly, 1e-5)


def test_a_template_of_the_same_noise_and_text_is_the_plain_picture(backbone, bank, picture):
    """A row that takes queries, keys and features from its own copy has what it had."""
    level = backbone.schedule.trained_levels()[300]
    x = backbone.schedule.scale_input(picture.trajectory.at(float(level)), level)
    composition = compose_regions(backbone, bank, SOURCE, [])
    text = encode(backbone, composition.whole).rows
    predicted, _ = answers(backbone, woven(composition, template(backbone, picture, attention=1, residual=1)), text, x)
    near(predicted, backbone.predict(x, torch.tensor([300]), text), 1e-5)


def test_suppression_of_the_base_itself_is_the_base(backbone, bank, picture):
    """Regions that read the template's text without concepts answer as the plain model does, whatever lambda is."""
    plain = [(SOURCE, place) for _, place in HALVES]
    want = latents(backbone, bank, template_of(backbone, picture, OFF), plain, SOURCE)
    near(latents(backbone, bank, template_of(backbone, picture, replace(OFF, suppression=0.8)), plain, SOURCE), want, 1e-4)


def test_order_and_batch_do_not_matter(backbone, bank, picture):
    into = template(backbone, picture, suppression=0.2)
    one = latents(backbone, bank, into)
    near(latents(backbone, bank, into, HALVES[::-1]), one, 1e-5)
    both = latents(backbone, bank, into, batch=2)
    near(both[:1], one, 1e-4)
    near(both[1:], one, 1e-4)


def test_pictures_of_a_batch_are_woven_each_into_its_own(backbone, bank, clean):
    text = encode(backbone, ParsedPrompt(SOURCE))
    two = torch.cat([clean, clean.flip(-1)])
    pictures = invert_picture(backbone, text, two, STEPS)
    both = latents(backbone, bank, template(backbone, pictures), batch=1)
    assert both.shape == two.shape and torch.equal(both[..., :2, :], two[..., :2, :])
    alone = latents(backbone, bank, template(backbone, invert_picture(backbone, text, two[1:], STEPS)))
    near(both[1:], alone, 1e-4)


def test_the_way_up_can_be_gone_back(backbone, clean):
    """With corrections, a picture of the model comes back from its noise; without, it comes nearer with more steps."""
    text = encode(backbone, ParsedPrompt(SOURCE))
    clean_of = denoiser_at(backbone, text)

    def error(steps, corrections=0):
        way = invert_picture(backbone, text, clean, steps, corrections).trajectory
        return float((descend(way.states[-1], way.levels, clean_of) - clean).square().mean().sqrt())

    assert error(20) < error(5) and error(20, 3) < 0.5 * error(20)


def test_a_flow_is_inverted_and_woven_too(backbone, bank, clean, monkeypatch):
    monkeypatch.setattr(backbone, "schedule", Schedule.straight())
    pictures = invert_picture(backbone, encode(backbone, ParsedPrompt(SOURCE)), clean, STEPS)
    found = latents(backbone, bank, template(backbone, pictures))
    assert found.isfinite().all() and torch.equal(found[..., :2, :], clean[..., :2, :])


def test_what_cannot_be_woven_is_refused_by_name(backbone, bank, picture):
    into = template(backbone, picture)
    sought = [("a <dog>", RegionMask(NOWHERE, sought=0.3))]
    with pytest.raises(ValueError, match="region 1 is to be found, and a template shows where things are"):
        weave(backbone, bank, "a <dog>", into, SamplingConfig(1), sought)
    with pytest.raises(ValueError, match="the latent is 8 x 8 and the template 16 x 16"):
        paint(backbone, bank, "a dog", unit_noise(DOODLE, 1, 1, 64, 64), SamplingConfig(1, template=into))
    other = replace(picture, text=picture.text[..., :96])
    with pytest.raises(ValueError, match=f"inverted by a model that reads texts of width 96, and Doodle reads {DOODLE.width}"):
        template(backbone, other)
    with pytest.raises(ValueError, match="expected one of the two"):
        SamplingConfig(template=into, estimation=NoiseEstimation())
    _, warnings = weave(backbone, bank, "a dog", into)
    assert warnings == [
        "there is no region and what no region covers is locked: the template comes out as it is; give regions, or unlock it"
    ]


def test_the_command_line_weaves_a_file_or_what_the_base_paints(bank, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)).save(photo)
    given = ["weave", "--bank", str(bank.folder), "--source", "a dog in the snow", "--prompt", "in the snow", "--steps", "2"]
    given += ["--region", "0,0.4,0.6,1: a <dog> in the snow", "--out", str(tmp_path)]
    for more, size in (((), (128, 128)), (("--image", str(photo)), (160, 96))):
        assert main([*given, *more]) == 0
        template, woven = capsys.readouterr().out.split()
        assert template.endswith("template-a-dog-in-the-snow-0.png") and woven.endswith("woven-in-the-snow-0.png")
        before, after = (np.asarray(Image.open(file), dtype=float) for file in (template, woven))
        assert before.shape[:2] == after.shape[:2] == size[::-1]
        changed = np.abs(before - after)
        assert changed[:, -24:].mean() < 0.5 < 5 < changed[-60:, :60].mean(), "the right side is locked"
    for wrong, told in (
        (("--suppression", "-1"), "suppression -1: expected 0"),
        (("--keep-attention", "2"), "keep attention 2: expected a part"),
        (("--prompt", "a <nobody>"), "nobody"),
        (("--source", "a <dog> in the snow"), "has the concept dog: expected plain words"),
        (("--image", str(tmp_path / "none.png")), "none.png"),
    ):
        assert main([*given, *wrong]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert told in error and error.startswith("cidm: ")
