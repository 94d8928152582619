"""Checks of weaving inside a ComfyUI, as in inside.py: what is the template's stays the template's, and both engines weave the same."""

import tempfile
from dataclasses import replace

from inside import RESULTS, doodle, doubled, equal, host, near, plain
from inside_painting import bank_of

# isort: split

import comfy.samplers
import torch
from pack.cidm_ops.method.regions import RegionMask
from pack.cidm_ops.painting.composition import compose_regions
from pack.cidm_ops.painting.config import WeaveConfig
from pack.cidm_ops.painting.weaving import template_of
from pack.nodes import patches, scenes
from pack.nodes.weaving import invert_latents
from safetensors.torch import save_file

SOURCE = "a dog and a cat in the snow"
STEPS = 4
WOVEN = WeaveConfig()
OFF = WeaveConfig(attention=0, residual=0, lock=False, grow=0)


def half(left=True):
    mask = torch.zeros(16, 16)
    mask[4:, :8] = float(left)
    mask[4:, 8:] = float(not left)
    return mask


def sigmas_of(model, steps=STEPS):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def sampled(model, positive, negative, latent, sigmas, noise=None, sampler="euler"):
    """What SamplerCustom does; without noise, with add_noise off."""
    noise = torch.zeros_like(latent) if noise is None else noise
    kind = comfy.samplers.sampler_object(sampler)
    return comfy.samplers.sample(model, noise, positive, negative, 3.0, model.load_device, kind, sigmas, latent_image=latent, seed=1)


class Scene:
    """A model, a bank of two concepts, and a template that the model itself painted."""

    def __init__(self, folder):
        self.model, self.clip, _ = doodle()
        doubled(self.model)
        self.backbone = host.ComfyBackbone(self.model, self.clip)
        self.bank = bank_of(self.backbone, folder, "rex", "tom")
        self.nothing = plain(self.clip, "")
        self.sigmas = sigmas_of(self.model)
        noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(5))
        self.latent = sampled(self.model, plain(self.clip, SOURCE), self.nothing, torch.zeros_like(noise), self.sigmas, noise)
        self.picture = self.inverted(self.latent)
        self.places = [("a <rex> in the snow", half()), ("a <tom> in the snow", half(False))]

    def inverted(self, latent, text=SOURCE):
        return invert_latents(self.model, plain(self.clip, text), latent, self.sigmas)

    def woven(self, how=WOVEN, whole="in the snow", places=None, picture=None):
        regions = [(text, RegionMask(mask)) for text, mask in (self.places if places is None else places)]
        composition = compose_regions(self.backbone, self.bank, whole, regions)
        return patches.woven_into(self.backbone, composition, template_of(self.backbone, picture or self.picture, how))

    def start(self, picture=None):
        return scenes.start_of(self.model, picture or self.picture)

    def paint(self, how=WOVEN, sampler="euler", **more):
        model, text = self.woven(how, **more)
        return sampled(model, text, self.nothing, self.start(), self.sigmas, sampler=sampler)


def the_weaving_with_everything_off_is_regions_from_the_same_noise():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        regions = [(text, RegionMask(mask)) for text, mask in scene.places]
        model, text = patches.in_regions(scene.backbone, compose_regions(scene.backbone, scene.bank, "in the snow", regions))
        want = sampled(model, text, scene.nothing, scene.start(), scene.sigmas)
        equal(scene.paint(OFF), want)
        for one in ({"suppression": 0.5}, {"attention": 0.5}, {"residual": 0.5}, {"lock": True}, {"grow": 2}):
            assert float((scene.paint(replace(OFF, **one)) - want).abs().max()) > 1e-2, one


def the_lock_keeps_the_template_to_the_last_bit_with_every_sampler():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        equal(scene.paint(places=[]), scene.latent)
        for sampler in comfy.samplers.SAMPLER_NAMES:
            found = scene.paint(WeaveConfig(grow=0), sampler=sampler)
            assert found.isfinite().all() and torch.equal(found[..., :4, :], scene.latent[..., :4, :]), sampler
            assert float((found[..., 5:, :] - scene.latent[..., 5:, :]).abs().max()) > 1e-2, sampler


def the_template_is_the_plain_model_whatever_is_woven_into_it():
    with tempfile.TemporaryDirectory() as folder:
        scene, rows = Scene(folder), []

        def watch(executor, x, *args, **kwargs):
            output = executor(x, *args, **kwargs)
            rows.append(output[-1:].clone())
            return output

        def first(model, *given):
            rows.clear()
            watched = model.clone()
            watched.add_wrapper_with_key("diffusion_model", "watch", watch)
            sampled(watched, *given)
            return rows[0]

        text = plain(scene.clip, SOURCE)
        want = first(scene.model, text, text, scene.start(), scene.sigmas)
        names = (("a <rex>", "a <tom>"), ("a <tom> on the beach", "a red boat"))
        found = []
        for texts in names:
            places = [(text, mask) for text, (_, mask) in zip(texts, scene.places, strict=True)]
            model, text = scene.woven(WeaveConfig(suppression=0.3), places=places)
            found.append(first(model, text, scene.nothing, scene.start(), scene.sigmas))
        equal(*found)
        near(found[0], want)


def the_suppression_of_the_base_itself_is_the_base():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        places = [(SOURCE, mask) for _, mask in scene.places]
        want = scene.paint(OFF, whole=SOURCE, places=places)
        near(scene.paint(replace(OFF, suppression=0.8), whole=SOURCE, places=places), want)
        assert float((scene.paint(replace(OFF, suppression=0.8)) - scene.paint(OFF)).abs().max()) > 1e-2


def the_weaving_leaves_the_model_as_it_was_and_comes_out_the_same_again():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        before = sampled(scene.model, plain(scene.clip, SOURCE), scene.nothing, scene.start(), scene.sigmas)
        equal(scene.paint(), scene.paint())
        equal(sampled(scene.model, plain(scene.clip, SOURCE), scene.nothing, scene.start(), scene.sigmas), before)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in scene.backbone.unet.modules())


def the_batch_is_woven_each_picture_into_its_own():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        two = torch.cat([scene.latent, scene.latent.flip(-1)])
        picture = scene.inverted(two)
        model, text = scene.woven(picture=picture)
        both = sampled(model, text, scene.nothing, scene.start(picture), scene.sigmas)
        equal(both[..., :3, :], two[..., :3, :])
        for number in range(2):
            own = scene.inverted(two[number : number + 1])
            near(both[number : number + 1], sampled(*scene.woven(picture=own), scene.nothing, scene.start(own), scene.sigmas))
        noise = torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(2))  # fresh noise, one template for all
        many = sampled(*scene.woven(), scene.nothing, torch.zeros_like(noise), scene.sigmas, noise)
        equal(many[..., :3, :], scene.latent[..., :3, :].expand(3, -1, -1, -1))


def the_weaving_reads_long_texts_and_longer_negatives():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        near(scene.paint(picture=scene.inverted(scene.latent, SOURCE)), scene.paint())
        long = scene.inverted(scene.latent, SOURCE + " and snow" * 50)
        model, text = scene.woven(picture=long)
        for negative in (scene.nothing, plain(scene.clip, "dog " * 100)):
            assert sampled(model, text, negative, scene.start(long), scene.sigmas).isfinite().all()


def the_weaving_that_cannot_be_is_refused_by_name():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        model, text = scene.woven()
        noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(2))
        sigmas, small = scene.sigmas, torch.zeros(1, 16, 8, 8)
        flat = plain(scene.clip, SOURCE)
        places = [(text, RegionMask(mask)) for text, mask in scene.places]
        regions, _ = patches.in_regions(scene.backbone, compose_regions(scene.backbone, scene.bank, "in the snow", places))
        for told, call in (
            ("is noise already", lambda: sampled(model, text, scene.nothing, scene.start(), sigmas, noise)),
            ("8 x 8 and the template 16 x 16", lambda: sampled(model, text, scene.nothing, small, sigmas, torch.ones_like(small))),
            ("the sampler is at noise level", lambda: sampled(model, text, scene.nothing, torch.zeros_like(noise), 2 * sigmas, noise)),
            ("weaves into a template already", lambda: scenes.with_more(model, scenes.scene_of(scene.woven(places=[])[0]))),
            ("weaves into a template already: give Paint in Regions", lambda: scenes.with_more(model, scenes.scene_of(regions))),
            ("paints in regions already: give Weave", lambda: scenes.with_more(regions, scenes.scene_of(scene.woven(places=[])[0]))),
            ("neither flipped nor split", lambda: invert_latents(model, flat, scene.latent, sigmas.flip(0))),
            ("2 texts in one conditioning", lambda: invert_latents(model, flat * 2, scene.latent, sigmas)),
        ):
            try:
                call()
            except ValueError as error:
                assert told in str(error), error
            else:
                raise AssertionError(f"it was not said: {told}")


def the_weaving_of_both_engines_is_the_same():
    with tempfile.TemporaryDirectory():
        scene = Scene(RESULTS.parent / "woven")
        found = scene.paint(WeaveConfig(suppression=0.2))
        scaled = scene.model.model.process_latent_in
        save_file({"clean": scaled(scene.latent), "woven": scaled(found)}, RESULTS.with_name("woven.safetensors"))
