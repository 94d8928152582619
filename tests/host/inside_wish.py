"""Checks of wishes inside a ComfyUI, as in inside.py: what a picture is followed by, guidance by two texts, and which candidate is kept."""

import json
import tempfile

from inside import RESULTS, doodle, doubled, equal, host, native, near, pack, plain
from inside_painting import bank_of

# isort: split

import comfy.sample
import comfy.samplers
import torch
from pack.cidm_ops.doodle.concepts import CONCEPTS, examples
from pack.cidm_ops.method.guidance import two_terms
from pack.cidm_ops.method.reference import fitted
from pack.cidm_ops.method.regions import RegionMask, box_mask
from pack.cidm_ops.painting.compose import AggregationConfig
from pack.cidm_ops.painting.composition import compose_regions
from pack.cidm_ops.painting.config import PRESETS, ReferenceConfig
from pack.cidm_ops.painting.reference import refer, reference_of, with_reference
from pack.cidm_ops.painting.scene import Scene as Beside
from pack.nodes import patches, scenes
from pack.nodes.picking import check_size, picked
from pack.nodes.reference import TwoTerms, fitted_masks
from safetensors.torch import save_file

PROMPT = "a dog on the beach"
STEPS = 3


class Scene:
    """Doodle in fp64, a picture that may be followed, and texts."""

    def __init__(self):
        self.model, self.clip, self.vae = doodle()
        doubled(self.model)
        self.backbone = host.ComfyBackbone(self.model, self.clip)
        self.prompt, self.nothing = plain(self.clip, PROMPT), plain(self.clip, "")
        self.latent = torch.zeros(1, 16, 16, 16)
        self.clean = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(5))

    def beside(self, count=1, masks=None, model=None, **how):
        model = model or self.model
        reference = reference_of(self.backbone, self.clean[:count], self.nothing[0][0], ReferenceConfig(**how), masks)
        return scenes.with_scene(model, with_reference(scenes.scene_of(model), reference))

    def marked(self, conditioning=None):
        return [[refer(text), more] for text, more in conditioning or self.prompt]

    def paint(self, model, positive=None, negative=None, sampler="euler", seed=1, latent=None):
        latent = self.latent if latent is None else latent
        noise = comfy.sample.prepare_noise(latent, seed)
        given = (positive or self.marked(), negative or self.nothing, latent)
        return comfy.sample.sample(model, noise, STEPS, 3.0, sampler, "normal", *given, seed=seed, disable_pbar=True)


def the_picture_that_is_not_followed_changes_nothing():
    scene = Scene()
    want = scene.paint(scene.model, scene.prompt)
    equal(scene.paint(scene.beside(), scene.prompt), want)  # a text without the mark
    near(scene.paint(scene.beside(strength=0)), want)
    near(scene.paint(scene.beside(start=1.0)), want)
    assert float((scene.paint(scene.beside()) - want).abs().max()) > 1e-2
    for how in ({"strength": 0.5}, {"strength": 1.5}, {"end": 0.5}, {"count": 2}, {"masks": fitted(torch.eye(16)[None], 128, 128)}):
        assert float((scene.paint(scene.beside(**how)) - scene.paint(scene.beside())).abs().max()) > 1e-3, how


def the_picture_that_refers_to_itself_stays_as_it_is():
    """Its own tokens are there twice then, which attention does not notice."""
    scene, seen = Scene(), []
    reference = reference_of(scene.backbone, scene.clean[:1], scene.prompt[0][0])
    model = scenes.with_scene(scene.model, with_reference(Beside(), reference))

    class Once(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *rest):
            x = reference.latents + 2.0 * reference.noise
            seen.append(model_wrap(x, torch.tensor([2.0]), **extra_args))
            return noise

    for one, text in ((model, scene.marked()), (scene.model, scene.prompt)):
        guider = comfy.samplers.CFGGuider(one)
        guider.inner_set_conds({"positive": text})
        guider.sample(torch.zeros(1, 16, 16, 16), torch.zeros(1, 16, 16, 16), Once(), torch.tensor([2.0, 0.0]), disable_pbar=True, seed=0)
    near(*seen)


def the_picture_is_followed_with_every_sampler_and_batch_by_batch():
    scene = Scene()
    model = scene.beside()
    for sampler in ("euler", "dpmpp_2m", "heun", "uni_pc", "lcm"):
        assert scene.paint(model, sampler=sampler).isfinite().all(), sampler
    both = scene.paint(model, latent=torch.zeros(2, 16, 16, 16))
    near(both[:1], scene.paint(model, latent=torch.zeros(2, 16, 16, 16), seed=1)[:1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in scene.backbone.unet.modules())


def the_picture_is_followed_beside_concepts_and_regions():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene()
        bank = bank_of(scene.backbone, folder, "rex", "tom")
        for regions in ([], ["a <rex>", "a <tom>"]):
            masks = [half(left) for left in (True, False)]
            places = list(zip(regions, masks, strict=False))
            composition = compose_regions(scene.backbone, bank, "a <rex> in the snow", places)
            model, positive = patches.in_regions(scene.backbone, composition, PRESETS["fast"])
            apart = scene.paint(model, positive)
            found = scene.paint(scene.beside(model=model), scene.marked(positive))
            assert found.isfinite().all() and float((found - apart).abs().max()) > 1e-3
            equal(scene.paint(scene.beside(model=model), positive), apart)
        late = patches.with_concepts(scene.backbone, [compose_regions(scene.backbone, bank, "a <rex>", []).whole])
        assert scene.paint(scene.beside(model=late)).isfinite().all()


def half(left):
    return RegionMask(box_mask(0.0 if left else 0.5, 0.0, 0.5 if left else 1.0, 1.0))


def the_nodes_of_a_wish_do_what_is_under_them():
    scene, reference = Scene(), pack.nodes.reference
    image = torch.rand(1, 100, 128, 3, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 100, 128)
    mask[:, 20:80, 30:90] = 1
    given = (scene.clip, scene.vae, scene.prompt, image, scene.latent, ReferenceConfig())
    model, positive = reference.follow(scene.model, *given)
    masked, _ = reference.follow(scene.model, *given, mask)
    without = scene.paint(scene.model, scene.prompt)
    found = [scene.paint(one, positive) for one in (model, masked)]
    assert all(float((one - without).abs().max()) > 1e-3 for one in found) and not torch.equal(*found)
    own = fitted(image[0].movedim(-1, 0), 128, 128)[None]
    latents = scene.model.model.process_latent_in(scene.vae.encode(own.movedim(1, -1)))
    same = scenes.with_scene(scene.model, with_reference(Beside(), reference_of(scene.backbone, latents, scene.nothing[0][0])))
    equal(scene.paint(same), found[0])
    for told, call in (
        ("the mask is 8 x 8 and the picture 128 x 100", lambda: fitted_masks(torch.ones(8, 8), image, 128, 128)),
        ("again is 64 x 64 pixels and images 128 x 128", lambda: check_size(torch.zeros(1, 64, 64, 3), torch.zeros(1, 128, 128, 3))),
        ("refers to pictures already", lambda: reference.follow(model, *given)),
        ("16 x 16 and the reference 8 x 8", lambda: scene.paint(
            reference.follow(scene.model, *given[:4], torch.zeros(1, 16, 8, 8), ReferenceConfig())[0]
        )),
    ):  # fmt: skip
        try:
            call()
        except ValueError as error:
            assert told in str(error), error
        else:
            raise AssertionError(f"it was not said: {told}")
    assert "identity 3" in reference.CIDMReferenceAttention.validate_inputs(3.0, 0.0, 1.0)


def the_guidance_by_two_texts_is_that_of_one_where_they_are_equal():
    scene = Scene()
    other = plain(scene.clip, "a dog")

    def guided(first, second, identity=scene.prompt, text=other, rescale=0.0, kind=TwoTerms, model=scene.model):
        guider = kind(model)
        if kind is TwoTerms:
            guider.set_texts(identity, text, scene.nothing, second, rescale)
        else:
            guider.set_conds(identity, scene.nothing)
        guider.set_cfg(first)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
        sampler = comfy.samplers.sampler_object("euler")
        noise = comfy.sample.prepare_noise(scene.latent, 1)
        return guider.sample(noise, scene.latent, sampler, sigmas, disable_pbar=True, seed=1)

    plainly = guided(3.0, 0.0, kind=comfy.samplers.CFGGuider)
    equal(guided(3.0, 0.0), plainly)
    near(guided(2.0, 1.0, text=scene.prompt), plainly)
    near(guided(0.0, 3.0, text=scene.prompt), plainly)
    apart = guided(3.0, 1.0)
    assert float((apart - plainly).abs().max()) > 1e-2
    assert guided(3.0, 1.0, rescale=1.0).std() < apart.std()
    doubled_by_a_node = scene.model.clone()  # another node's guidance stays: here one that ignores the scale
    doubled_by_a_node.set_model_sampler_cfg_function(lambda args: args["uncond"] + 3.0 * (args["cond"] - args["uncond"]))
    near(guided(1.5, 1.0, model=doubled_by_a_node), apart)
    d = torch.randn(3, 1, 4, 4, 4)
    assert torch.equal(two_terms(d[0], d[1], None, 3.0, 0.0), d[0] + 3.0 * (d[1] - d[0]))
    model = scene.beside()  # of two texts one follows the picture
    alone = guided(4.0, 0.0, identity=scene.marked(), model=model)
    near(guided(3.0, 1.0, identity=scene.marked(), text=scene.marked(), model=model), alone)
    assert float((guided(3.0, 1.0, identity=scene.marked(), text=scene.prompt, model=model) - alone).abs().max()) > 1e-3


def the_best_candidate_is_picked_and_more_are_asked_for_only_when_needed():
    best = pack.nodes.picking.CIDMPickBest

    def shown(*names):
        return torch.stack([torch.tensor(examples(CONCEPTS[name], 1)[0].picture).float() / 255 for name in names])

    images, references = shown("cat", "dog", "duck"), shown("dog", "dog")
    tower, reader, clip = native.vision(), native.reader(), native.captions()
    assert picked(images, "", 0.5, tower, references).best == 1
    words = examples(CONCEPTS["cat"], 1)[0].caption  # the others stand in another place
    found = picked(images, words, 0.5, reader=reader, clip=clip)
    assert found.best == 0, f"{words}: {found.table}"
    assert picked(images, words, 1.0, tower, references, reader, clip).best == 1
    given = {"images": images, "text": "a boat in the snow", "likeness": 0.5, "reader": reader, "clip": clip}
    assert best.check_lazy_status(**given, bound=1.0, again=None) == ["again"]
    assert best.check_lazy_status(**given, bound=-1.0, again=None) == [] == best.check_lazy_status(**given, bound=1.0)
    one, every, report, obeys = pack.nodes.picking.best_of(bound=0.99, again=shown("backpack"), **given)
    assert one.shape[0] == 1 and len(every) == 4 and torch.equal(every[:1], one) and not obeys and "1 more were painted" in report
    for text, more in (("", {}), ("a dog", {"clip": clip})):
        try:
            picked(images, text, 0.5, **more)
        except ValueError as error:
            assert "nothing to pick by" in str(error)
        else:
            raise AssertionError("there was something to pick by")


def the_wish_of_one_node_is_changed_by_the_next():
    read = pack.nodes.wish.understood
    with tempfile.TemporaryDirectory() as folder:
        bank = bank_of(host.ComfyBackbone(*doodle()[:2]), folder, "rex", "tom")
        first = read("rex at the beach, as an ink drawing", bank)[0]
        assert first[0] == "an ink drawing of a <rex> at the beach" and first[2] == () and 0 < first[3] < 1
        second = read("now at night, without people", bank, before=first[7])[0]
        assert second[:2] == ("an ink drawing of a <rex> at night", "people")
        answer = "Sure! " + json.dumps({"subject": "rex", "scene": "in the snow", "reply": "Enjoy."})
        assert read("anything", bank, answer)[0][0] == "a <rex> in the snow"
        values, _, warnings = read("rex", bank, "no JSON here", "nor here")
        assert values[0] == "a <rex>" and len(warnings) == 2 and "<rex>" in values[8]
        values = read("rex on the left and tom on the right", bank)[0]
        texts = [text for text, _ in values[2]]
        assert len(texts) == 2 and "<rex>" in texts[0] and "<tom>" in texts[1] and "<" not in values[0]


def the_overlap_of_regions_is_shared_or_the_strongest_ones():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene()
        bank = bank_of(scene.backbone, folder, "rex", "tom")

        def painted(edge, overlap="shared", priority=0):
            boxes = (box_mask(0.0, 0.0, edge, 1.0), box_mask(1 - edge, 0.0, 1.0, 1.0))
            places = [("a <rex>", RegionMask(boxes[0])), ("a <tom>", RegionMask(boxes[1], priority=priority))]
            how = AggregationConfig(overlap=overlap)
            return scene.paint(*patches.in_regions(scene.backbone, compose_regions(scene.backbone, bank, "in the snow", places, how)))

        equal(painted(0.5, "strongest"), painted(0.5))
        equal(painted(0.75, "strongest", 1), painted(0.75, priority=1))
        assert float((painted(0.75, "strongest") - painted(0.75)).abs().max()) > 1e-3
        equal(painted(0.75, "strongest"), painted(0.75, "strongest"))


def the_picture_is_followed_alike_by_both_engines():
    scene = Scene()
    model = scene.beside(count=2, strength=0.8, end=0.7)  # no step lies at that level
    scaled = scene.model.model.process_latent_in
    noise = comfy.sample.prepare_noise(scene.latent, 1)
    found = comfy.sample.sample(
        model, noise, 6, 3.0, "euler", "normal", scene.marked(), scene.nothing, scene.latent, seed=1, disable_pbar=True
    )  # fmt: skip
    save_file({"clean": scene.clean, "painted": scaled(found)}, RESULTS.with_name("referred.safetensors"))
