"""Options of painting that make concepts obey: a late start, the place where a concept stands, and more guidance inside regions."""

import pytest
import torch
from test_command_line import cidm, refused  # noqa: F401

from cidm_ops.method.regions import NOWHERE, RegionMask
from cidm_ops.models.sd import DOODLE
from cidm_ops.painting import composition
from cidm_ops.painting.compose import AggregationConfig, compose
from cidm_ops.painting.composition import compose_regions
from cidm_ops.painting.config import PLACE
from cidm_ops.painting.paint import SamplingConfig, paint, paint_latents, unit_noise

DOG = "a <dog:0.9> in the snow"
LEFT = RegionMask(torch.tensor([[1.0, 0.0]]))


@pytest.fixture
def latents(backbone, bank):
    def made(prompt, regions=(), steps=2, guidance=3.0, side=64, **how):
        composition = compose_regions(backbone, bank, prompt, regions, AggregationConfig(**how))
        return paint_latents(backbone, composition, unit_noise(DOODLE, 1, 1, side, side), SamplingConfig(steps, guidance))

    return made


def near(a, b, part=1e-4):
    assert float((a - b).abs().max()) <= part * float(b.abs().max())


def apart(a, b):
    assert float((a - b).abs().max()) > 1e-2


class TestGuidance:
    @pytest.mark.parametrize("places", [(), (("a <dog> in the snow", LEFT),)], ids=["one prompt", "a region"])
    def test_at_one_the_negative_text_is_not_computed(self, latents, backbone, monkeypatch, places):
        """As in the host; the picture is the one of a guidance beside it."""
        rows, unet = [], backbone.unet.forward
        monkeypatch.setattr(backbone.unet, "forward", lambda x, *args, **kwargs: rows.append(len(x)) or unet(x, *args, **kwargs))
        alone = latents(DOG, places, guidance=1.0)
        seen, rows[:] = sum(rows), []
        near(alone, latents(DOG, places, guidance=1 + 1e-6))
        assert sum(rows) == 2 * seen > 0

    def test_where_regions_get_more_of_it_both_are(self, latents):
        places = [("a <dog> in the snow", LEFT)]
        apart(latents("in the snow", places, guidance=1.0, inside=1.5), latents("in the snow", places, guidance=1.0))


class TestLateStart:
    def test_from_the_beginning_it_is_the_default_and_never_it_is_the_base(self, latents):
        assert torch.equal(latents(DOG, start=0.0), latents(DOG))
        assert torch.equal(latents(DOG, start=1.0), latents("a dog in the snow"))

    def test_it_begins_where_it_says(self, latents):
        """Of three steps, the second is at half of the sampling, the third at its end."""
        second, third = (latents(DOG, start=start, steps=3) for start in (0.4, 0.6))
        apart(second, latents(DOG, steps=3))
        apart(second, third)
        assert torch.equal(second, latents(DOG, start=0.2, steps=3)) and not torch.equal(third, latents(DOG, start=1.0, steps=3))

    def test_regions_begin_in_plain_words_too(self, latents):
        places = [("a <dog> in the snow", LEFT), ("a <cat>", RegionMask(1 - LEFT.mask))]
        plain = [("a dog in the snow", LEFT), ("a cat", RegionMask(1 - LEFT.mask))]
        near(latents("in the snow", places, start=1.0), latents("in the snow", plain), 1e-6)
        apart(latents("in the snow", places, start=0.4), latents("in the snow", places))

    def test_concepts_that_start_late_are_not_merged(self, backbone, bank):
        assert compose_regions(backbone, bank, DOG, ()).mergeable
        assert not compose_regions(backbone, bank, DOG, (), AggregationConfig(start=0.1)).mergeable

    def test_what_cannot_be_is_named(self, backbone, bank):
        with pytest.raises(ValueError, match=r"start 1.5: expected a part of the sampling, from 0 to 1"):
            AggregationConfig(start=1.5)
        sought = [("a <dog>", RegionMask(NOWHERE, sought=0.2))]
        with pytest.raises(ValueError, match=r"a start at 0.1 of the sampling, and a place that is found"):
            compose_regions(backbone, bank, "a dog", sought, AggregationConfig(start=0.1))
        with pytest.raises(ValueError, match=r"apart -0.1: expected a part of the sampling"):
            AggregationConfig(apart=-0.1)
        drawn = [("a <dog>", LEFT)]
        for what, how in (("regions apart", {"apart": 0.2}), ("cut texts", {"padding": False})):
            with pytest.raises(ValueError, match=rf"{what}: the layers of Doodle read texts apart from the image anyway"):
                compose_regions(backbone, bank, "a dog", drawn, AggregationConfig(**how))


class TestWhereItStands:
    def test_before_the_place_is_found_it_is_everywhere(self, latents, monkeypatch):
        monkeypatch.setattr(composition, "PLACE_UNTIL", 1.0)  # never
        near(latents(DOG, scope=PLACE), latents(DOG))

    def test_around_the_place_the_base_paints(self, backbone, bank, latents):
        apart(latents(DOG, scope=PLACE, steps=8, side=128), latents(DOG, steps=8, side=128))  # 64 pixels are too few for a place
        composition = compose_regions(backbone, bank, DOG, (), AggregationConfig(scope=PLACE))
        (region,) = composition.regions
        assert composition.whole.text == "a dog in the snow" and not composition.whole.concepts
        assert region.mix.text == "a <dog.1> <dog.2> in the snow" and region.mask.sought == 0.25 and region.mask.mask.all()
        weights = composition.scene().stacks[0].weights  # [P, elsewhere and the place, L, G]
        assert not weights[:, 0].any() and torch.allclose(weights[:, 1], torch.tensor(0.9))

    def test_a_prompt_without_concepts_is_the_bases(self, latents):
        assert torch.equal(latents("a red cup", scope=PLACE), latents("a red cup"))

    def test_paint_finds_places_too(self, backbone, bank):
        noise = unit_noise(DOODLE, 1, 1, 128, 128)
        how = [AggregationConfig(scope=scope) for scope in (PLACE, "by kind")]
        found, plain = (paint(backbone, bank, DOG, noise, SamplingConfig(8, aggregation=config)) for config in how)
        assert not found[1] and float((found[0] - plain[0]).abs().max()) > 1e-2

    def test_what_has_no_place_is_named(self, backbone, bank):
        how = AggregationConfig(scope=PLACE)
        with pytest.raises(ValueError, match="<ink> is a style, which is everywhere in a picture"):
            compose_regions(backbone, bank, "an <ink> of a cup", (), how)
        with pytest.raises(ValueError, match="there are regions, which say it"):
            compose_regions(backbone, bank, DOG, [("a <cat>", LEFT)], how)
        with pytest.raises(ValueError, match="needs the prompt as well as the model: take Paint with Concepts"):
            compose(backbone, bank, DOG, how)


class TestGuidanceInRegions:
    def test_everywhere_it_is_the_guidance_of_the_sampler(self, latents):
        everywhere = [("a <dog>", RegionMask(torch.ones(1, 1)))]
        near(latents("in the snow", everywhere, inside=1.5, guidance=2.0), latents("in the snow", everywhere, guidance=3.0), 1e-5)
        assert torch.equal(latents("in the snow", everywhere, inside=1.0), latents("in the snow", everywhere))

    def test_outside_of_regions_it_stays(self, latents):
        """After one step: later ones see what has changed beside them."""
        one, more = (latents("in the snow", [("a <dog>", LEFT)], steps=1, inside=inside) for inside in (1.0, 1.5))
        assert torch.equal(one[..., 4:], more[..., 4:])
        apart(one[..., :4], more[..., :4])

    def test_in_half_a_region_it_is_half_as_much(self, latents):
        half = RegionMask(LEFT.mask, strength=0.5)
        one, some, more = (latents("in the snow", [("a <dog>", half)], steps=1, inside=inside) for inside in (1.0, 1.5, 2.0))
        near(some - one, (more - one) / 2, 1e-3)

    def test_a_negative_one_is_named(self):
        with pytest.raises(ValueError, match="guidance inside regions -1: expected 0 or more"):
            AggregationConfig(inside=-1.0)


def test_the_command_line_has_them(cidm, bank, tmp_path):  # noqa: F811
    given = ["generate", "--bank", bank.folder, "--prompt", DOG, "--steps", 1, "--size", 64, "--out", tmp_path]
    assert cidm(*given, "--start", 0.1)[0] == 0 and cidm(*given, "--reach", PLACE)[0] == 0
    assert cidm(*given, "--region", "0,0,0.5,1: a <cat>", "--region-guidance", 1.5)[0] == 0
    assert "from 0 to 1" in refused(cidm(*given, "--start", 2))
