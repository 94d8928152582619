"""Checks of Infusion inside a ComfyUI, as in inside.py: what is the base stays the base, and both engines paint the same."""

import tempfile
from dataclasses import replace
from pathlib import Path

from inside import RESULTS, data_of, doodle, doubled, equal, host, near, plain, sample

# isort: split

import comfy.sample
import torch
from comfy.ldm.modules.attention import optimized_attention
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.bank.concept import Concept
from pack.cidm_ops.concept_text import ConceptText
from pack.cidm_ops.method.regions import RegionMask
from pack.cidm_ops.painting.compose import AggregationConfig, compose, mix, residual_masks
from pack.cidm_ops.painting.config import STREAMS, ResidualConfig
from pack.cidm_ops.painting.scene import Scene as Scene_
from pack.cidm_ops.row_plan import RowPlan
from pack.cidm_ops.training.method import Task
from pack.cidm_ops.training.methods import configure
from pack.cidm_ops.training.task import learn_into
from pack.nodes import patches, scenes
from safetensors.torch import save_file


def concept(backbone, name, class_word="dog", scale=0.5, seed=0):
    g = torch.Generator().manual_seed(seed)
    widths = {f"{n}.{part}": m.to_v.out_features for n, m in backbone.cross_attention.items() for part in ("to_v", "to_k")}
    residuals = {n: scale * torch.randn(width, generator=g) for n, width in widths.items()}
    return Concept(
        name=name, class_word=class_word, architecture=backbone.architecture, fingerprint=backbone.fingerprint, residuals=residuals
    )


class Scene:
    """A model and a bank of Infusion concepts, and pictures of prompts."""

    def __init__(self, folder, learns=False):
        self.model, self.clip, self.vae = doodle()
        self.backbone = host.ComfyBackbone(self.model if learns else doubled(self.model), self.clip, self.vae)
        self.bank = Bank(Path(folder) / "infused")
        for seed, (name, word, scale) in enumerate((("rex", "dog", 0.5), ("nil", "dog", 0.0), ("ted", "teddy bear", 0.5))):
            self.bank = self.bank.add(concept(self.backbone, name, word, scale, seed))
        self.nothing = plain(self.clip, "")

    def applied(self, prompt, model=None, strength=1.0, regions=(), **how):
        """What Apply Infusion hands on."""
        infusion, aggregation = ResidualConfig(**how), AggregationConfig(strength=strength)
        masks = residual_masks(self.bank, regions)
        mixed = compose(self.backbone, self.bank, prompt, aggregation, layers=infusion.layers, masks=masks)
        backbone = host.ComfyBackbone(model or self.model, self.clip)
        return patches.with_infusion(backbone, mixed, infusion, aggregation)

    def paint(self, prompt, negative=None, **how):
        model, text = self.applied(prompt, **how)
        return sample(model, text, negative or self.nothing)


def watched(model, seen):
    """A model that keeps, for every pass through its U-Net, the answers by what the host says that they are: 0 positive, 1 negative."""

    def watch(executor, x, *args, **kwargs):
        options = next(a for a in (*args, *kwargs.values()) if isinstance(a, dict) and "cond_or_uncond" in a)
        output = executor(x, *args, **kwargs)
        seen.append([(half, row.clone()) for half, row in zip(options["cond_or_uncond"], output, strict=True)])
        return output

    patched = model.clone()
    patched.add_wrapper_with_key("diffusion_model", "watch", watch)
    return patched


def answers(model, positive, negative):
    """Of one step: the positive text's rows in the order of the batch, and the negative's."""
    seen = []
    sample(watched(model, seen), positive, negative, steps=1)
    return [[row for half, row in seen[0] if half == wanted] for wanted in (0, 1)]


def the_infusion_of_nothing_is_the_base():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        before = sample(scene.model, plain(scene.clip, "a dog on the beach"), scene.nothing)
        others = []
        for stream in STREAMS:
            equal(scene.paint("a <nil> on the beach", stream=stream), before)
            equal(scene.paint("a <rex:0> on the beach", stream=stream), before)
            equal(scene.paint("a <rex> on the beach", stream=stream, strength=0.0), before)
            equal(scene.paint("a dog on the beach", stream=stream), before)
            equal(scene.paint("a <rex> on the beach", stream=stream, start=1.0), before)
            new = scene.paint("a <rex> on the beach", stream=stream)
            apart = [float((new - other).abs().max()) for other in (before, *others)]
            assert min(apart) > 0.02, apart
            others.append(new)
            equal(scene.paint("a <rex> on the beach", stream=stream), new)
        equal(sample(scene.model, plain(scene.clip, "a dog on the beach"), scene.nothing), before)
        assert not scene.model.wrappers.get("diffusion_model") and not any(m._forward_pre_hooks for m in scene.backbone.unet.modules())
        model, _ = scene.applied("a <rex>")
        equal(sample(model.clone(), plain(scene.clip, "a dog on the beach"), scene.nothing), before)


def the_infusion_goes_through_the_second_stream_too():
    """A residual of zero that is not left out: every row of the second stream is that of the first."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        text = plain(scene.clip, "a dog on the beach")
        before = sample(scene.model, text, scene.nothing)
        _, carried = scene.applied("a <rex> on the beach")
        for residual in carried[0][0].plans[0].residuals:
            for vector in residual.residuals.values():
                vector.zero_()
        model = scenes.with_scene(scene.model, Scene_())
        near(sample(model, carried, scene.nothing), before)
        (want,), (plain_negative,) = answers(scene.model, text, scene.nothing)
        (row, foundation), (negative,) = answers(model, carried, scene.nothing)  # the negative text has no second stream
        for found, base in ((row, want), (foundation, want), (negative, plain_negative)):
            near(found, base)


def the_foundation_is_the_base_with_any_residual():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        (want,), (plain_negative,) = answers(scene.model, plain(scene.clip, "a dog on the beach"), scene.nothing)
        for stream in STREAMS:
            (new, *foundation), (negative,) = answers(*scene.applied("a <rex> on the beach", stream=stream), scene.nothing)
            near(negative, plain_negative)
            assert float((new - want).abs().max()) > 1e-4 and len(foundation) == (stream == "dual")
            if foundation:
                near(foundation[0], want)


def the_infusion_acts_on_texts_that_carry_it_alone():
    """In one batch with other texts, in longer ones, and in a part of the sampling."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        long = plain(scene.clip, "dog " * 100)
        model, carried = scene.applied("a <rex> on the beach")
        (alone, _), _ = answers(model, carried, scene.nothing)
        (beside, _), _ = answers(model, carried, long)
        near(beside, alone)
        (swapped, _), _ = answers(model, long, carried)[::-1]
        near(swapped, alone)
        equal(sample(model, plain(scene.clip, "a dog"), scene.nothing), sample(scene.model, plain(scene.clip, "a dog"), scene.nothing))
        behind = plain(scene.clip, "in the snow")[0][0]
        longer = torch.cat([carried[0][0], behind], 1)  # what other nodes put behind carries nothing
        told = [replace(r, marks=torch.cat([r.marks, torch.zeros(77)])) for r in carried[0][0].plans[0].residuals]
        want = ConceptText.of(torch.cat([carried[0][0].plain, behind], 1), [RowPlan(residuals=tuple(told))])
        equal(*(answers(model, [[text, {}]], scene.nothing)[0][0] for text in (longer, want)))
        whole, early, late = (scene.paint("a <rex> on the beach", **how) for how in ({}, {"end": 0.5}, {"start": 0.5}))
        assert float((early - whole).abs().max()) > 1e-3 and float((late - whole).abs().max()) > 1e-3


def the_infusion_leaves_a_replacement_of_another_pack_to_its_work():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        want = scene.paint("a <rex> on the beach")
        called = []

        def foreign(q, k, v, extra):
            called.append(len(q))
            return optimized_attention(q, k, v, extra["n_heads"])

        model = scene.model.clone()
        for kind, numbers in (("input", range(12)), ("middle", [0]), ("output", range(12))):
            for number in numbers:
                model.set_model_attn2_replace(foreign, kind, number)
        near(scene.paint("a <rex> on the beach", model=model), want)
        assert called and set(called) == {3}


def the_infusion_keeps_to_its_region_and_its_word():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder)
        left = torch.zeros(16, 16)
        left[:, :8] = 1
        base, whole = (scene.paint(prompt) for prompt in ("a dog and a teddy bear", "a <rex> and a <ted>"))
        nowhere = scene.applied("a <rex> and a teddy bear", regions=[("<rex>", RegionMask(torch.zeros(16, 16)))])
        (want,), _ = answers(scene.model, plain(scene.clip, "a dog and a teddy bear"), scene.nothing)
        near(answers(*nowhere, scene.nothing)[0][0], want)
        everywhere = [("<rex> <ted>", RegionMask(torch.ones(32, 32)))]
        near(scene.paint("a <rex> and a <ted>", regions=everywhere), whole)
        half = scene.paint("a <rex> and a teddy bear", regions=[("<rex>", RegionMask(left))])
        assert float((half - base).abs()[..., :8].mean()) > float((half - base).abs()[..., 8:].mean())
        for shape in ((2, 16, 24, 16), (1, 16, 20, 28)):
            latent = torch.zeros(shape)
            model, text = scene.applied("a <rex> and a <ted>", regions=[("<rex>", RegionMask(left))])
            noise = comfy.sample.prepare_noise(latent, 1)
            picture = comfy.sample.sample(model, noise, 2, 4.0, "euler", "normal", text, scene.nothing, latent, seed=1)
            assert picture.shape == shape and picture.isfinite().all()


def the_infusion_and_low_rank_concepts_share_a_prompt():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder, learns=True)
        config = configure("cidm", steps=2, batch=2, lr=1e-2, lr_tokens=1e-2)
        with torch.inference_mode(False):
            scene.bank = learn_into(scene.bank, scene.backbone, data_of("cat"), Task(name="tom", class_word="cat", config=config)).bank
        both = scene.paint("a <tom> and a <rex>")
        for other in ("a <tom> and a dog", "a cat and a <rex>"):
            assert float((both - scene.paint(other)).abs().max()) > 1e-2
        equal(scene.paint("a <tom> and a <rex:0>"), scene.paint("a <tom> and a dog"))
        exact = Scene(Path(folder) / "exact")
        tom = mix(exact.backbone, scene.bank, "a <tom>")
        exact.bank = scene.bank
        routed, merged = (
            exact.applied("a cat and a <rex>", model=model)
            for model in (
                patches.with_concepts(exact.backbone, [tom], AggregationConfig(routed=True)),
                patches.merge(exact.model, tom.factors(exact.backbone)),
            )
        )
        near(sample(*routed, exact.nothing), sample(*merged, exact.nothing))


def the_infusion_learns_and_both_engines_paint_it():
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(folder, learns=True)
        bank = Bank(RESULTS.parent / "infused")
        config = configure("infusion", steps=6, batch=2, accumulate=1, anchor=1.0, seed=1)
        task = Task(name="dog", class_word="dog", config=config)
        before = [p.clone() for p in scene.backbone.unet.parameters()]
        with torch.inference_mode(False):
            bank, made, losses, _ = learn_into(bank, scene.backbone, data_of("dog"), task)
            again = learn_into(bank, scene.backbone, data_of("dog"), task)
        assert len(losses) == 6 and all(r.abs().max() > 0 for r in made.residuals.values())
        for n, r in made.residuals.items():
            equal(again[1].residuals[n], r)
        for a, b in zip(scene.backbone.unet.parameters(), before, strict=True):
            equal(a, b)
        scene.bank, scene.backbone = bank, host.ComfyBackbone(doubled(scene.model), scene.clip, scene.vae)
        model, text = scene.applied("a <dog:2> on the beach")
        latent = torch.zeros(1, 16, 16, 16)
        noise = comfy.sample.prepare_noise(latent, 1)
        picture = comfy.sample.sample(model, noise, 10, 4.0, "euler", "normal", text, scene.nothing, latent, seed=1)
        scaled = scene.model.model.process_latent_in(picture)
        save_file({"latents": scaled}, RESULTS.with_name("infused.safetensors"))
