"""Reference attention without a host: a picture that refers to itself or to nothing is the plain one; and guidance by two texts."""

import pytest
import torch

from cidm_ops.bank.bank import Bank
from cidm_ops.concept_text import plans_of
from cidm_ops.method.guidance import two_terms
from cidm_ops.method.reference import fitted, shown_tokens, with_reference
from cidm_ops.method.regions import RegionMask, box_mask
from cidm_ops.models.sd import DOODLE
from cidm_ops.painting.compose import ParsedPrompt, compose, encode
from cidm_ops.painting.composition import Composition, compose_regions
from cidm_ops.painting.config import NoiseEstimation, ReferenceConfig
from cidm_ops.painting.paint import SamplingConfig, paint_latents, predictor, unit_noise
from cidm_ops.painting.reference import refer, refer_by, reference_of
from cidm_ops.painting.reference import with_reference as beside
from cidm_ops.painting.scene import Scene

PROMPT = "a dog on the beach"


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    return Bank(tmp_path_factory.mktemp("nothing"))


@pytest.fixture(scope="module")
def clean():
    return torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def latents(backbone, nothing, clean):
    text = encode(backbone, ParsedPrompt("")).rows

    def painted(prompt=PROMPT, count=1, batch=1, masks=None, bank=nothing, regions=(), text_guidance=0.0, **how):
        reference = reference_of(backbone, clean[:count], text, ReferenceConfig(**how), masks) if count else None
        composition = compose_regions(backbone, bank, prompt, regions) if regions else Composition(compose(backbone, bank, prompt), ())
        config = SamplingConfig(3, 3.0, reference=reference, text_guidance=text_guidance)
        return paint_latents(backbone, composition, unit_noise(DOODLE, 3, batch, 128, 128), config)

    return painted


def far(a, b):
    return float((a - b).abs().max()) / float(b.abs().max())


class TestPainting:
    def test_without_strength_or_time_it_is_the_plain_picture(self, latents):
        plain = latents(count=0)
        assert torch.equal(latents(strength=0), plain)
        assert far(latents(start=1.0), plain) < 1e-5 and far(latents(end=0.0), plain) < 1e-5
        assert far(latents(), plain) > 1e-2

    def test_each_setting_changes_the_picture(self, latents):
        shown = latents()
        for how in ({"strength": 0.5}, {"strength": 1.5}, {"end": 0.5}, {"start": 0.5}, {"count": 2}):
            assert far(latents(**how), shown) > 1e-3, how

    def test_a_mask_over_everything_is_no_mask(self, latents):
        assert torch.equal(latents(masks=torch.ones(1, 128, 128)), latents())
        assert far(latents(masks=box_mask(0.2, 0.2, 0.7, 0.7)[None]), latents()) > 1e-3

    def test_a_batch_is_its_pictures_one_by_one(self, latents, backbone, nothing, clean):
        both = latents(batch=2)
        assert far(both[:1], latents()) < 1e-4

    def test_the_same_picture_twice_is_seen_twice_as_much(self, latents, backbone, nothing, clean):
        """More keys of the reference take attention from the picture's own."""
        assert far(latents(count=2), latents(count=1)) > 1e-3

    def test_it_goes_together_with_concepts_and_regions(self, latents, bank):
        plain = latents("a <dog> in the snow", count=0, bank=bank)
        assert far(latents("a <dog> in the snow", bank=bank), plain) > 1e-3
        halves = [("a <dog> in the snow", RegionMask(box_mask(0, 0, 0.5, 1))), ("a <cat> in the snow", RegionMask(box_mask(0.5, 0, 1, 1)))]
        apart = latents("in the snow", count=0, bank=bank, regions=halves)
        assert far(latents("in the snow", bank=bank, regions=halves), apart) > 1e-3

    def test_the_second_term_guides_to_the_text_alone(self, latents, backbone, nothing):
        """Where the reference has no strength both terms are of one text, so they add up."""
        both = latents(strength=0, text_guidance=1.0)
        composition = Composition(compose(backbone, nothing, PROMPT), ())
        more = paint_latents(backbone, composition, unit_noise(DOODLE, 3, 1, 128, 128), SamplingConfig(3, 4.0))
        assert far(both, more) < 1e-4
        assert far(latents(text_guidance=1.0), latents()) > 1e-2


def predicted(backbone, scene, x, texts, step=300):
    return predictor(backbone, scene)(x, torch.tensor([step] * len(x)), texts, None, 1)


def test_a_picture_that_refers_to_itself_stays_as_it_is(backbone):
    """Keys and values that are there twice change no attention."""
    schedule, clean = backbone.schedule, torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(5))
    text = encode(backbone, ParsedPrompt(PROMPT)).rows
    reference = reference_of(backbone, clean, text)
    level = schedule.trained_levels()[300]
    x = schedule.scale_input(schedule.noised(clean, reference.noise, level), level)
    want = backbone.predict(x, torch.tensor([300]), text)
    assert far(predicted(backbone, beside(Scene(), reference), x, refer(text)), want) < 1e-5
    other = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert (
        far(predicted(backbone, beside(Scene(), reference), other, refer(text)), backbone.predict(other, torch.tensor([300]), text)) > 1e-3
    )


def test_a_text_without_the_mark_refers_to_nothing(backbone, clean):
    text, nothing = (encode(backbone, ParsedPrompt(said)).rows for said in (PROMPT, ""))
    scene, x = beside(Scene(), reference_of(backbone, clean[:1], nothing)), clean[1:]
    plain = predicted(backbone, Scene(), x, text)
    assert torch.equal(predicted(backbone, scene, x, text), plain)
    marked = predicted(backbone, scene, x, refer(text))
    assert far(marked, plain) > 1e-3
    both = predictor(backbone, scene)(torch.cat([x, x]), torch.tensor([300] * 2), torch.cat([refer(text), text]), None, 2)
    assert far(both[:1], marked) < 1e-5 and far(both[1:], plain) < 1e-5
    half = predicted(backbone, scene, x, refer(text, 0.5))
    assert 1e-4 < far(half, plain) < far(marked, plain)


def test_the_mark_stays_with_its_text(backbone):
    text = refer(encode(backbone, ParsedPrompt(PROMPT)).rows)
    for one in (text.repeat(2, 1, 1), torch.cat([text, text]), text.repeat(1, 2, 1), text * 0.5 + text * 0.5, text[:1], text.half()):
        assert all(plan.refers > 0.4 and not plan.composed for plan in plans_of(one))
    assert [plan.refers for plan in refer_by(encode(backbone, ParsedPrompt(PROMPT))).plans] == [1.0]


def test_what_cannot_be_is_refused_by_name(backbone, clean, latents):
    text = encode(backbone, ParsedPrompt("")).rows
    reference = reference_of(backbone, clean[:1], text)
    for told, call in (
        ("2 masks for 1 reference", lambda: reference_of(backbone, clean[:1], text, None, torch.ones(2, 8, 8))),
        ("the mask of a reference is empty", lambda: reference_of(backbone, clean[:1], text, None, torch.zeros(1, 8, 8))),
        ("identity 3", lambda: ReferenceConfig(3.0)),
        ("start 0.5 and end 0.2", lambda: ReferenceConfig(start=0.5, end=0.2)),
        ("16 x 16 and the reference 8 x 8", lambda: predicted(
            backbone, beside(Scene(), reference_of(backbone, clean[:1, :, :8, :8], text)), clean[:1], refer(text)
        )),
        ("refers to pictures already", lambda: beside(beside(Scene(), reference), reference)),
        ("region noise estimation and a reference", lambda: beside(Scene(estimation=NoiseEstimation()), reference)),
        ("guidance by the text alone", lambda: SamplingConfig(text_guidance=1.0)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            call()


class TestEquations:
    d = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def test_without_the_second_term_it_is_classifier_free_guidance(self):
        nothing, identity, text = self.d
        want = nothing + 5.0 * (identity - nothing)
        assert torch.equal(two_terms(nothing, identity, text, 5.0, 0.0), want)
        assert torch.equal(two_terms(nothing, identity, None, 5.0, 2.0), want)

    def test_equal_texts_are_guidance_of_both_together(self):
        nothing, identity, _ = self.d
        torch.testing.assert_close(two_terms(nothing, identity, identity, 3.0, 2.0), nothing + 5.0 * (identity - nothing))

    def test_rescaling_brings_back_the_spread(self):
        nothing, identity, text = self.d
        found = two_terms(nothing, identity, text, 5.0, 2.0, rescale=1.0)
        torch.testing.assert_close(found.std((1, 2, 3)), identity.std((1, 2, 3)))

    def test_strength_goes_on_in_the_same_direction(self):
        own, seen = self.d[0].flatten(2), self.d[1].flatten(2)
        assert torch.equal(with_reference(own, seen, torch.zeros(2)), own)
        torch.testing.assert_close(with_reference(own, seen, torch.ones(2)), seen)
        torch.testing.assert_close(with_reference(own, seen, torch.tensor([2.0, 0.5]))[0], 2 * seen[0] - own[0])

    def test_tokens_of_a_subject(self):
        mask = torch.zeros(16, 16)
        mask[:8, 8:] = 1
        assert shown_tokens(mask, 4, 4).tolist() == [2, 3, 6, 7]
        mask[:] = 0
        mask[5, 5] = 1
        assert shown_tokens(mask, 4, 4).tolist() == [5]

    def test_a_picture_is_cut_from_its_middle(self):
        picture = torch.arange(12.0).view(1, 3, 4)
        assert torch.equal(fitted(picture, 3, 3), picture[:, :, :3]) or torch.equal(fitted(picture, 3, 3), picture[:, :, 1:])
        assert fitted(torch.rand(3, 50, 100), 64, 64).shape == (3, 64, 64)
        assert torch.equal(fitted(picture, 3, 4), picture)
