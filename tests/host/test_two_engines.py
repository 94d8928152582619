"""ComfyUI and diffusers paint the same picture from the same noise, with concepts that ComfyUI learned.

Both compute in fp64 what is a sum; the bound is what fp32 at the edges leaves (4e-6 to 6e-6 measured), so two hosts agree within 2e-4.
"""

from dataclasses import replace

import torch
from safetensors.torch import load_file

from cidm_ops.adapters import attach
from cidm_ops.bank.bank import Bank
from cidm_ops.doodle.concepts import CONCEPTS, examples
from cidm_ops.engines.diffusers import load
from cidm_ops.evaluation.contrast import contrast_by, rendered_common
from cidm_ops.evaluation.doodle import pictured
from cidm_ops.method.boxes import read_region
from cidm_ops.method.regions import RegionMask
from cidm_ops.painting.compose import ConceptMix, ParsedPrompt, compose, encode, mix
from cidm_ops.painting.composition import Composition, compose_regions
from cidm_ops.painting.config import ReferenceConfig, WeaveConfig
from cidm_ops.painting.paint import SamplingConfig, paint_latents, predictor, unit_noise
from cidm_ops.painting.reference import reference_of
from cidm_ops.painting.sampling import sample
from cidm_ops.painting.scene import Scene
from cidm_ops.painting.weaving import invert_picture, noise_of, template_of
from cidm_ops.training.canvases import Lesson
from cidm_ops.training.contrasting import ContrastConfig, contrast
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.spaces import CaptionSide, Contrast


def test_the_latents_agree(results, inside):
    assert not results["the_host_paints_for_a_comparison"]
    backbone, bank = load("doodle", dtype=torch.float64), Bank(inside / "bank")
    mixture = mix(backbone, bank, "a <dog> on the beach")
    assert not mixture.warnings, "both engines give the base one fingerprint"
    context, negative = encode(backbone, mixture), encode(backbone, ParsedPrompt(""))
    with torch.no_grad(), attach(backbone.layers, mixture.factors(backbone)):
        latents = sample(backbone, context, negative, unit_noise(backbone.family, 1, 1, 128, 128), steps=10, guidance=4.0)
    difference = float((latents - load_file(inside / "painted.safetensors")["latents"]).abs().max())
    print(f"largest difference in the latent: {difference:.2e}")
    assert difference < 1e-4


def test_the_latents_of_regions_with_concepts_of_both_kinds_agree(results, inside):
    assert not results["the_concepts_of_both_kinds_have_a_region_each_and_both_engines_paint_them"]
    backbone, bank = load("doodle", dtype=torch.float64), Bank(inside / "both")
    regions = [read_region("0,0,0.5,1: a <rex>"), read_region("0.5,0,1,1: a <spot>")]
    composition = compose_regions(backbone, bank, "in the snow", regions)
    latents = paint_latents(backbone, composition, unit_noise(backbone.family, 1, 1, 128, 128), SamplingConfig(6, 4.0))
    difference = float((latents - load_file(inside / "both.safetensors")["latents"]).abs().max())
    print(f"largest difference in the latent: {difference:.2e}")
    assert difference < 1e-4


def test_the_latents_of_infusion_agree(results, inside):
    assert not results["the_infusion_learns_and_both_engines_paint_it"]
    backbone, bank = load("doodle", dtype=torch.float64), Bank(inside / "infused")
    mixture = compose(backbone, bank, "a <dog:2> on the beach")
    context, negative = encode(backbone, mixture), encode(backbone, ParsedPrompt(""))
    predict = predictor(backbone, Scene())
    with torch.no_grad():
        latents = sample(backbone, context, negative, unit_noise(backbone.family, 1, 1, 128, 128), steps=10, guidance=4.0, predict=predict)
    difference = float((latents - load_file(inside / "infused.safetensors")["latents"]).abs().max())
    print(f"largest difference in the latent: {difference:.2e}")
    assert difference < 1e-4


def test_the_latents_of_a_woven_template_agree(results, inside):
    assert not results["the_weaving_of_both_engines_is_the_same"]
    backbone, bank, host = load("doodle", dtype=torch.float64), Bank(inside / "woven"), load_file(inside / "woven.safetensors")
    picture = invert_picture(backbone, encode(backbone, ParsedPrompt("a dog and a cat in the snow")), host["clean"], 4)
    template = template_of(backbone, picture, WeaveConfig(suppression=0.2))
    left, right = torch.zeros(2, 16, 16)
    left[4:, :8], right[4:, 8:] = 1, 1
    regions = [("a <rex> in the snow", RegionMask(left)), ("a <tom> in the snow", RegionMask(right))]
    composition = compose_regions(backbone, bank, "in the snow", regions)
    noise = noise_of(picture.trajectory, backbone.schedule)
    latents = paint_latents(backbone, composition, noise, SamplingConfig(4, 3.0, template=template))
    difference = float((latents - host["woven"]).abs().max())
    print(f"largest difference in the latent: {difference:.2e}")
    assert difference < 1e-4


def test_the_latents_of_a_picture_that_follows_another_agree(results, inside):
    assert not results["the_picture_is_followed_alike_by_both_engines"]
    backbone, host = load("doodle", dtype=torch.float64), load_file(inside / "referred.safetensors")
    how = ReferenceConfig(0.8, 0.0, 0.7)
    reference = reference_of(backbone, host["clean"], encode(backbone, ParsedPrompt("")).rows, how)
    composition = Composition(ConceptMix("a dog on the beach"), ())
    noise = unit_noise(backbone.family, 1, 1, 128, 128)
    latents = paint_latents(backbone, composition, noise, SamplingConfig(6, 3.0, reference=reference))
    difference = float((latents - host["painted"]).abs().max())
    print(f"largest difference in the latent: {difference:.2e}")
    assert difference < 1e-4


def test_the_words_are_contrasted_alike(results, inside):
    assert not results["the_contrast_of_both_engines_is_the_same"]
    backbone, host = load("doodle"), load_file(inside / "contrast.safetensors")
    space = contrast_by(backbone).spaces[0]
    by = Contrast((replace(space, see=lambda pictures: space.see(in_8_bits(pictures))),), rendered_common(4))
    lessons = [Lesson(name, "dog", first_pictures(name)) for name in ("dog", "dog2")]
    done = contrast(backbone, by, lessons, [], ContrastConfig(steps=3, batch=8, canvases=12, lr=1e-2, norm_stop=0))
    side = CaptionSide(backbone, by.spaces[0])(["a photo of a red dog on the left", "a cat"], {})
    assert float((side - host["texts"]).abs().max()) < 1e-5
    assert float((torch.tensor(done.losses) - host["losses"]).abs().max()) < 1e-3


def in_8_bits(pictures):
    """Rounds pictures in [-1, 1] as the host does before an image tower sees them."""
    return (pictures.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


def first_pictures(name):
    shown = examples(CONCEPTS[name], 3)
    masks = [torch.from_numpy(e.mask)[None].float() / 255 for e in shown]
    return Dataset(list(pictured(shown) / 2 + 0.5), [e.caption for e in shown], masks)
