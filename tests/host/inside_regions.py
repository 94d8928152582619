"""Checks of regions inside a ComfyUI, as in inside.py: exact statements about one pass with many texts."""

import tempfile

from inside import doodle, host, near, plain, run, sample
from inside_painting import bank_of

# isort: split

import comfy.samplers
import torch
from pack.cidm_ops.method.regions import Place
from pack.cidm_ops.run.prompt import mix
from pack.nodes import patches, regional
from pack.nodes.estimation import Estimation, estimating
from pack.nodes.regional import Region, in_regions


def half(left=True):
    mask = torch.zeros(16, 16)
    mask[:, :8] = float(left)
    mask[:, 8:] = float(not left)
    return mask


class Scene:
    """A model, its text encoder and a bank of two concepts, and pictures of prompts in places."""

    def __init__(self, folder):
        self.model, self.clip, _ = doodle()
        self.backbone = host.ComfyBackbone(self.model, self.clip)
        self.bank = bank_of(self.backbone, folder, "rex", "tom")
        self.nothing = plain(self.clip, "")

    def mixed(self, prompt):
        return mix(self.backbone, self.bank, prompt)

    def text(self, prompt):
        conditioning = patches.conditioning(self.clip, [self.mixed(prompt)])
        return conditioning, conditioning[0][1].get(patches.CONTEXT, conditioning[0][0])

    def regions(self, whole, *places, **how):
        made = [Region(Place(mask, *rest), self.text(prompt)[1], self.mixed(prompt)) for prompt, mask, *rest in places]
        return in_regions(self.backbone, self.mixed(whole), made, **how)

    def paint(self, whole, *places, negative=None, **how):
        return sample(self.regions(whole, *places, **how), self.text(whole)[0], negative or self.nothing)

    def ordinary(self, prompt, negative=None):
        model = patches.merged(self.model, self.mixed(prompt).factors(self.backbone))
        return sample(model, self.text(prompt)[0], negative or self.nothing)


def the_region_that_is_everywhere_is_the_ordinary_prompt():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        worded = plain(scene.clip, "a red boat")
        for negative in (scene.nothing, worded):
            want = scene.ordinary("a <rex> in the snow", negative)
            near(scene.paint("a dog", ("a <rex> in the snow", torch.ones(16, 16)), negative=negative), want, 1e-4 * float(want.abs().max()))
            near(scene.paint("a <rex> in the snow", negative=negative), want, 1e-4 * float(want.abs().max()))
            none = scene.paint("a <rex> in the snow", ("a <tom>", torch.zeros(16, 16)), negative=negative)
            near(none, want, 1e-4 * float(want.abs().max()))
        bare = sample(scene.model, scene.text("a dog")[0], scene.nothing)
        near(scene.paint("a dog"), bare, 0)
        assert float((scene.paint("a dog", ("a <rex>", half())) - bare).abs().max()) > 0.01


def the_order_of_regions_does_not_matter():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        left, right = ("a <rex> in the snow", half()), ("a <tom>", half(False))
        one = scene.paint("in the snow", left, right)
        near(scene.paint("in the snow", right, left), one, 1e-4 * float(one.abs().max()))
        near(scene.paint("in the snow", left, right), one, 0)


def the_regions_do_not_change_each_others_attention():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        outputs = []
        for other in ("a <tom>", "a red boat"):
            patched = scene.regions("in the snow", ("a <rex>", half()), (other, half(False)))
            block = ("input", 3, 0)
            inner = patched.model_options["transformer_options"]["patches_replace"]["attn2"][block]
            seen = []

            def watched(q, k, v, extra, inner=inner, seen=seen):
                seen.append(inner(q, k, v, extra))
                return seen[-1]

            patched.set_model_attn2_replace(watched, *block)
            sample(patched, scene.text("in the snow")[0], scene.nothing, steps=1)
            outputs.append(seen[0].unflatten(1, (8, 8)))
        near(outputs[0][:, :, :4], outputs[1][:, :, :4], 0)
        assert float((outputs[0][:, :, 4:] - outputs[1][:, :, 4:]).abs().max()) > 1e-3


def the_samplers_all_paint_regions():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        patched = scene.regions("in the snow", ("a <rex>", half()), ("a <tom>", half(False)))
        text = scene.text("in the snow")[0]
        for name in comfy.samplers.SAMPLER_NAMES:
            latent = torch.zeros(1, 4, 16, 16)
            noise = comfy.sample.prepare_noise(latent, 1)
            picture = comfy.sample.sample(patched, noise, 3, 4.0, name, "normal", text, scene.nothing, latent, seed=1)
            assert picture.isfinite().all(), name


def the_region_in_another_shape_and_batch():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        patched = scene.regions("in the snow", ("a <rex>", half()), ("a <tom>", half(False), 0.5))
        text = scene.text("in the snow")[0]
        for shape in ((3, 4, 16, 16), (2, 4, 24, 16), (1, 4, 20, 28), (1, 4, 10, 14)):
            latent = torch.zeros(shape)
            noise = comfy.sample.prepare_noise(latent, 1)
            picture = comfy.sample.sample(patched, noise, 2, 4.0, "euler", "normal", text, scene.nothing, latent, seed=1)
            assert picture.shape == shape and picture.isfinite().all()


def the_regions_of_a_layer_are_one_call_of_attention():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        calls, attention, counts = [], regional.optimized_attention, []
        regional.optimized_attention = lambda *args, **kwargs: calls.append(1) or attention(*args, **kwargs)
        try:
            for count in (2, 8):
                strips = torch.zeros(count, 16, 16)
                for u in range(count):
                    strips[u, 2 * u : 2 * u + 2, :12] = 1
                calls.clear()
                scene.paint("in the snow", *(("a <rex>", mask) for mask in strips))
                counts.append(len(calls))
        finally:
            regional.optimized_attention = attention
        assert counts == [2 * 2 * 7] * 2, "two steps, seven layers, the global text and all the others"


def the_rows_of_a_batch_read_their_own_negative_texts_in_regions():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        patched = scene.regions("in the snow", ("a <rex>", half()), ("a <tom> " + "in the snow " * 40, half(False)))
        text, noise = scene.text("in the snow")[0], torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        texts = [plain(scene.clip, prompt)[0][0] for prompt in ("a red boat", "a dog")]

        def painted(noise, negative):
            latent = torch.zeros_like(noise)
            return comfy.sample.sample(patched, noise, 2, 4.0, "euler", "normal", text, [[negative, {}]], latent, seed=1)

        both = painted(noise, torch.cat(texts))
        for row in range(2):
            near(both[row], painted(noise[row : row + 1], texts[row])[0], 1e-4 * float(both.abs().max()))
        assert float((both[1] - painted(noise[1:], texts[0])[0]).abs().max()) > 1e-3


def the_noise_of_regions_is_blended_into_the_global_one():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        left, right = ("a <rex> in the snow", half()), ("a <tom>", half(False))
        places = [Place(mask) for _, mask in (left, right)]
        features = scene.regions("in the snow", left, right)
        text = scene.text("in the snow")[0]

        def painted(**how):
            return sample(estimating(features, places, Estimation(**how)), text, scene.nothing)

        globally = scene.ordinary("in the snow")
        near(painted(alpha=1.0, features=True), sample(features, text, scene.nothing), 0)
        near(painted(start=1.0), sample(features, text, scene.nothing), 0)
        full = painted(alpha=0.1)
        assert float((full - globally).abs().max()) > 0.01
        near(painted(alpha=0.1, bootstrap=0.0), full, 0)
        assert painted(alpha=0.1, bootstrap=0.5).isfinite().all()
        # Eq. 5 from single passes: one step, no guidance
        seen = {}
        passes = {
            "whole": scene.regions("in the snow"),
            "left": scene.regions("in the snow", left),
            "right": scene.regions("in the snow", right),
        }
        blended = estimating(features, places, Estimation(alpha=0.25))
        for name, model in {**passes, "blended": blended}.items():
            model = model.clone()
            model.set_model_sampler_post_cfg_function(
                lambda args, name=name: seen.setdefault(name, args["cond_denoised"]) * 0 + args["denoised"]
            )
            sample(model, text, scene.nothing, steps=1)
        want = 0.25 * seen["whole"]
        want[..., :8] += 0.75 * seen["left"][..., :8]
        want[..., 8:] += 0.75 * seen["right"][..., 8:]
        near(seen["blended"], want, 1e-3)


if __name__ == "__main__":
    run(globals())
