"""Checks of painting inside a ComfyUI, as in inside.py: whatever the host does with a LoRA of its own, it does with concepts."""

import tempfile
from dataclasses import replace

from inside import RESULTS, data_of, doodle, doubled, equal, host, near, plain, random_factors, sample, wise

# isort: split

import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.sd
import comfy.utils
import torch
from comfy.cldm.cldm import ControlNet
from comfy.ldm.modules.attention import optimized_attention
from pack.cidm_ops.adapters import attach, linears
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.bank.concept import Concept
from pack.cidm_ops.causal import linear_layers
from pack.cidm_ops.lowrank import LowRank
from pack.cidm_ops.models.sd import DOODLE
from pack.cidm_ops.painting.compose import AggregationConfig, mix
from pack.cidm_ops.painting.config import MODES, WORDS, WORDS_AND_END
from pack.cidm_ops.painting.scope import acting_at, token_masks
from pack.cidm_ops.painting.texts import kept_text
from pack.cidm_ops.training.method import Task
from pack.cidm_ops.training.methods import configure
from pack.cidm_ops.training.task import learn_into
from pack.nodes import native, patches
from safetensors.torch import save_file


def the_merged_factors_equal_the_attached_ones():
    model, clip, _ = doodle()
    doubled(model)
    backbone = host.ComfyBackbone(model, clip)
    factors = random_factors(backbone)
    positive, negative = plain(clip, "a dog"), plain(clip, "")
    bare = sample(model, positive, negative)
    merged = sample(patches.merge(model, factors), positive, negative)
    with attach(linears(backbone), factors):
        beside = sample(model, positive, negative)
    near(merged, beside)
    assert float((merged - bare).abs().max()) > 0.1
    equal(sample(model, positive, negative), bare)
    equal(sample(patches.merge(model, {}), positive, negative), bare)


def the_layers_read_their_own_text_in_a_batch_as_alone():
    model, clip, _ = doodle()
    doubled(model)
    painted = patches.merge(model, {})
    batches = []
    painted.add_wrapper_with_key(
        "diffusion_model", "count", lambda executor, x, *args, **kwargs: batches.append(len(x)) or executor(x, *args, **kwargs)
    )
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(7, 77, DOODLE.width, generator=generator)
    x = torch.randn(1, 16, 16, 16, generator=generator)
    negative = plain(clip, "")

    backbone = host.ComfyBackbone(model, clip)
    sigmas = model.model.model_sampling
    sampled = []
    painted.set_model_sampler_post_cfg_function(
        lambda args: sampled.append((args["cond_denoised"], args["uncond_denoised"], args["input"])) or args["denoised"]
    )
    for cond, uncond in (
        (wise(context), negative),
        (wise(context), wise(context.flip(0))),
        (negative, wise(context)),
        (plain(clip, "dog " * 100), wise(context)),
    ):
        batches.clear()
        sampled.clear()
        comfy.sample.sample(painted, x, 1, 4.0, "euler", "normal", cond, uncond, torch.zeros(1, 16, 16, 16), seed=1)
        got = sampled[0]
        assert batches[0] == 2, f"cond and uncond ran apart: batches {batches}"
        noisy, level = got[2], sigmas.sigma_max
        scale = (1 + level**2).sqrt()
        for result, text in zip(got, (cond, uncond), strict=False):
            velocity = backbone.predict(noisy / scale, torch.tensor([999]), text[0][0])
            near(result, (noisy / scale - level * velocity) / scale)
    # several conds with areas of their own run too
    both = [[wise(context)[0][0], {**wise(context)[0][1], "area": (8, 16, 0, 0), "strength": 1.0}], negative[0]]
    assert sample(painted, both, negative).isfinite().all()


def the_plain_model_takes_layerwise_text_as_its_mean():
    model, clip, _ = doodle()
    context = torch.randn(7, 77, DOODLE.width, generator=torch.Generator().manual_seed(0))
    equal(sample(model, wise(context), plain(clip, "")), sample(model, [[context.mean(0, keepdim=True), {}]], plain(clip, "")))


def the_prompt_reaches_the_picture():
    model, clip, vae = doodle()
    with tempfile.TemporaryDirectory() as folder:
        with torch.inference_mode(False):
            backbone = host.ComfyBackbone(model, clip, vae)
            task = Task(name="dog", class_word="dog", config=configure("cidm", steps=2, lr=1e-2))
            bank, *_ = learn_into(Bank(folder), backbone, data_of("dog"), task)
        for mode in MODES:
            mixture = mix(backbone, bank, "a <dog> on the beach", AggregationConfig(mode=mode))
            factors = mixture.factors(backbone)
            assert mixture.weights.shape == (7, 1) and not mixture.warnings and len(factors) == 28
        conditioning = patches.conditioning(clip, [mixture])
        assert conditioning[0][0].plans[0].layers.shape == (7, 77, 160)
        assert sample(patches.merge(model, factors), conditioning, plain(clip, "")).isfinite().all()


def the_host_paints_for_a_comparison():
    """Latents of a prompt with a concept learned here, and the bank, kept for test_two_engines.py."""
    model, clip, vae = doodle()
    with torch.inference_mode(False):
        backbone = host.ComfyBackbone(model, clip, vae)
        task = Task(name="dog", class_word="dog", config=configure("cidm", steps=5, lr=1e-2))
        bank, *_ = learn_into(Bank(RESULTS.parent / "bank"), backbone, data_of("dog"), task)
    mixture = mix(backbone, bank, "a <dog> on the beach")
    conditioning = patches.conditioning(clip, [mixture])
    doubled(model)
    latents = sample(patches.merge(model, mixture.factors(backbone)), conditioning, plain(clip, ""), steps=10)
    save_file({"latents": model.model.process_latent_in(latents).contiguous()}, RESULTS.parent / "painted.safetensors")


def the_lora_is_one_for_the_host():
    model, clip, _ = doodle()
    backbone = host.ComfyBackbone(model, clip)
    factors = random_factors(backbone)
    lora = patches.lora_model(model, factors)
    loaded, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    positive, negative = plain(clip, "a dog"), plain(clip, "")
    equal(sample(loaded, positive, negative), sample(patches.merge(model, factors), positive, negative))


def concept(backbone, name, seed, **extra):
    """A concept of random factors and words."""
    rows = torch.randn(2, 7, DOODLE.width, generator=torch.Generator().manual_seed(seed)) * 0.02
    words = (f"<{name}.1>", f"<{name}.2>")
    factors = random_factors(backbone, seed)
    return Concept(
        name=name,
        class_word="dog",
        words=words,
        factors=factors,
        tokens={"clip_l": rows},
        architecture=backbone.architecture,
        fingerprint=backbone.fingerprint,
        **extra,
    )


def bank_of(backbone, folder, *names):
    bank = Bank(folder)
    for name in names:
        bank = bank.add(concept(backbone, name, sum(map(ord, name))))
    return bank


def with_core(model, bank, *names, clip=None):
    """MODEL and CLIP with concept files loaded by the host's own LoRA loader."""
    for name in names:
        model, clip = comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(str(bank.file(name))), 1.0, 1.0)
    return model, clip


def with_ours(model, clip, bank, prompt, **how):
    backbone = host.ComfyBackbone(model, clip)
    return patches.with_concepts(backbone, [mix(backbone, bank, prompt)], AggregationConfig(**how))


def the_concept_alone_is_what_the_core_loader_makes_of_its_file():
    model, clip, _ = doodle()
    doubled(model)
    backbone = host.ComfyBackbone(model, clip)
    positive, negative = plain(clip, "a dog"), plain(clip, "")
    bare = sample(model, positive, negative)
    with tempfile.TemporaryDirectory() as folder:
        bank = bank_of(backbone, folder, "rex", "tom")
        equal(
            sample(with_ours(model, clip, bank, "a <rex>"), positive, negative),
            sample(with_core(model, bank, "rex")[0], positive, negative),
        )
        both = sample(with_core(model, bank, "rex", "tom")[0], positive, negative)
        ours = with_ours(model, clip, bank, "a <rex> and a <tom>")
        near(sample(ours, positive, negative), both)
        half = mix(backbone, bank, "a <rex:0.5>").factors(backbone)
        scaled = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(bank.file("rex"))), 0.5, 0.0)[0]
        near(sample(patches.merge(model, half), positive, negative), sample(scaled, positive, negative))
        equal(sample(with_ours(model, clip, bank, "a <rex:0>"), positive, negative), bare)
        equal(sample(with_ours(model, clip, bank, "a dog"), positive, negative), bare)
    equal(sample(model, positive, negative), bare)


def the_order_in_which_concepts_were_learned_does_not_show():
    model, clip, _ = doodle()
    backbone = host.ComfyBackbone(model, clip)
    names, negative, pictures = ["rex", "tom", "ann", "bob"], plain(clip, ""), []
    for turn in range(10):
        order = torch.randperm(4, generator=torch.Generator().manual_seed(turn)).tolist()
        with tempfile.TemporaryDirectory() as folder:
            bank = bank_of(backbone, folder, *(names[i] for i in order))
            said = mix(backbone, bank, "a <tom> and a <rex:0.7> and <ann> in the snow")
            pictures.append(sample(patches.merge(model, said.factors(backbone)), patches.conditioning(clip, [said]), negative))
    for other in pictures[1:]:
        equal(other, pictures[0])


def the_routed_model_paints_what_the_merged_one_does():
    model, clip, _ = doodle()
    doubled(model)
    backbone = host.ComfyBackbone(model, clip)
    negative = plain(clip, "")
    with tempfile.TemporaryDirectory() as folder:
        bank = bank_of(backbone, folder, "rex", "tom")
        mixtures = [mix(backbone, bank, text) for text in ("a <rex> in the snow", "a <tom> and a <rex:0.5>", "a dog", "<tom> " * 40)]
        texts = [patches.conditioning(clip, [m]) for m in mixtures]
        merged = [sample(patches.merge(model, m.factors(backbone)), t, negative) for m, t in zip(mixtures, texts, strict=True)]
        for mixture, text, want in zip(mixtures, texts, merged, strict=True):
            near(sample(patches.with_concepts(backbone, [mixture], AggregationConfig(routed=True)), text, negative), want)
        batch = patches.with_concepts(backbone, mixtures)
        latent = torch.zeros(4, 16, 16, 16)
        noise = comfy.sample.prepare_noise(torch.zeros(1, 16, 16, 16), 1).repeat(4, 1, 1, 1)
        text = patches.conditioning(clip, mixtures)
        got = comfy.sample.sample(batch, noise, 2, 4.0, "euler", "normal", text, negative, latent, seed=1)
        near(got, torch.cat(merged))
        # the negative half without concepts: the bare model there, the merged one elsewhere
        one_sided = halves(patches.with_concepts(backbone, [mixtures[0]], AggregationConfig(negative=False)), texts[0], negative)
        near(one_sided[0], halves(patches.merge(model, mixtures[0].factors(backbone)), texts[0], negative)[0])
        near(one_sided[1], halves(model, texts[0], negative)[1])


def halves(model, positive, negative):
    """What a model predicts at the first step: on the positive text, and on the negative one."""
    seen, patched = [], model.clone()
    patched.set_model_sampler_post_cfg_function(lambda a: seen.append((a["cond_denoised"], a["uncond_denoised"])) or a["denoised"])
    sample(patched, positive, negative, steps=1)
    return seen[0]


def the_concepts_act_only_where_they_are_named():
    model, clip, _ = doodle()
    doubled(model)
    backbone = host.ComfyBackbone(model, clip)
    negative = plain(clip, "a cat")
    with tempfile.TemporaryDirectory() as folder:
        bank = bank_of(backbone, folder, "rex", "tom")
        mixture = mix(backbone, bank, "a <rex> next to a red cup")
        positive, factors = patches.conditioning(clip, [mixture]), mixture.factors(backbone)
        rest = {name: f for name, f in factors.items() if not DOODLE.reads_text(name)}
        assert len(rest) == len(factors) / 2
        everywhere = halves(patches.with_concepts(backbone, [mixture], AggregationConfig(routed=True)), positive, negative)
        for reach, count in ((WORDS, 2), (WORDS_AND_END, 2 + 77 - 9)):  # start, a, two words, next to a red cup
            at = acting_at(token_masks(backbone, mixture.text, mixture.concepts), mixture.concepts, reach, 77)
            assert int(at.sum()) == count
            masked = {name: (lambda x, f=f, at=at: f(x) * at) for name, f in factors.items() if name not in rest}
            always = {name: f for name, f in rest.items() if reach != WORDS or not DOODLE.looks_at_text(name)}
            got = halves(patches.with_concepts(backbone, [mixture], AggregationConfig(scope=reach)), positive, negative)
            with attach(linears(backbone), always | masked):
                want = halves(patches.merge(model, {}), positive, negative)
            near(got[0], want[0])
            near(got[1], halves(patches.merge(model, always), positive, negative)[1])
            if reach == WORDS:
                style = replace(mixture, concepts=[replace(concept, training={"kind": "style"}) for concept in mixture.concepts])
                equal(halves(patches.with_concepts(backbone, [style]), positive, negative)[0], got[0])
            assert float((got[0] - everywhere[0]).abs().max()) > 0.01

        # texts of different length in one batch, each as alone
        mixtures = [mixture, mix(backbone, bank, "a <tom> " + "in the deep snow " * 20), mix(backbone, bank, "a dog")]
        how = AggregationConfig(scope=WORDS)
        alone = [sample(patches.with_concepts(backbone, [m], how), patches.conditioning(clip, [m]), negative) for m in mixtures]
        noise = comfy.sample.prepare_noise(torch.zeros(1, 16, 16, 16), 1).repeat(3, 1, 1, 1)
        batch, texts = patches.with_concepts(backbone, mixtures, how), patches.conditioning(clip, mixtures)
        got = comfy.sample.sample(batch, noise, 2, 4.0, "euler", "normal", texts, negative, torch.zeros(3, 16, 16, 16), seed=1)
        near(got, torch.cat(alone))


def the_convolutions_and_the_text_encoder_of_a_lora_act_as_with_the_core_loader():
    model, clip, _ = doodle()
    doubled(model)
    backbone = host.ComfyBackbone(model, clip)
    generator = torch.Generator().manual_seed(3)

    def factors_of(layers):
        made = {}
        for name, layer in layers.items():
            out, *inner = layer.weight.shape
            down = torch.randn(4, int(torch.tensor(inner).prod()), generator=generator) * 0.05
            made[name] = LowRank(torch.randn(out, 4, generator=generator) * 0.05, down, tuple(inner[1:]))
        return made

    lora = Concept(name="far", class_word="", factors=factors_of(backbone.layers), architecture=backbone.architecture, triggers=("ohwx",))
    lora = replace(lora, text_factors=factors_of(linear_layers(backbone.texts)))
    assert any(f.kernel == (3, 3) for f in lora.factors.values()) and len(lora.text_factors) == 18
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank(folder).add(lora)
        core, core_clip = with_core(model, bank, "far", clip=clip)
        mixture = mix(backbone, bank, "an OHWX dog")
        assert mixture.strengths == {"far": 1.0} and mixture.text == "an OHWX dog"
        positive, negative = plain(core_clip, "an ohwx dog"), plain(clip, "")
        want = sample(core, positive, negative)
        equal(sample(patches.merge(model, mixture.factors(backbone)), positive, negative), want)
        near(sample(patches.with_concepts(backbone, [mixture], AggregationConfig(routed=True)), positive, negative), want)
        ours = patches.patched_clip(clip, mixture.concepts, mixture.strengths)
        equal(plain(ours, "an ohwx dog")[0][0], positive[0][0])
        for encoder in (clip, ours):  # the factors act once
            near(patches.conditioning(encoder, [mixture])[0][0], positive[0][0])
        equal(plain(clip, "an ohwx dog")[0][0], plain(native.clip(), "an ohwx dog")[0][0])


def the_kept_texts_are_those_of_the_text_encoder_as_it_is():
    model, clip, _ = doodle()
    layer = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp.fc1
    skipped, patched, injected = (clip.clone() for _ in range(3))
    skipped.clip_layer(-2)
    patched.add_patches({"clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": ("diff", (torch.ones_like(layer.weight),))})

    def inject(patcher):
        forward = layer.forward
        layer.forward = lambda x: 2 * forward(x)

    def eject(patcher):
        del layer.forward

    injected.patcher.set_injections("twice", [comfy.patcher_extension.PatcherInjection(inject, eject)])  # as a LoRA in bypass mode does

    def text(clip):
        return kept_text(host.ComfyText(clip), "a dog").states

    first = text(clip)
    assert text(clip.clone()) is first, "it is looked up"
    for changed in (skipped, patched, injected):
        assert float((text(changed) - first).abs().max()) > 1e-3
        near(text(changed)[0], changed.encode_from_tokens(changed.tokenize("a dog")))
        assert text(clip) is first
    assert not first.is_inference(), "training reads it too"
    # without a model all layers read one text, whatever was encoded for its layers before
    assert kept_text(host.ComfyBackbone(model, clip), "a cat").context.shape[1] == 7
    assert kept_text(host.ComfyText(clip), "a cat").context.shape[1] == 1


def control_net(seed=0):
    torch.manual_seed(seed)
    unused = ("out_channels", "transformer_depth_output", "use_temporal_attention", "legacy")
    config = {k: v for k, v in native.UNET.items() if k not in unused}
    net = ControlNet(**config, hint_channels=3, num_head_channels=32, dtype=torch.float32)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return comfy.controlnet.ControlNet(net.eval().requires_grad_(False), load_device=torch.device("cpu"))


def the_other_parts_of_the_host_work_beside_concepts():
    """Each with a concept from our node and from the core loader: the pictures are the same."""
    model, clip, _ = doodle()
    doubled(model)
    backbone = host.ComfyBackbone(model, clip)
    positive, negative = plain(clip, "a dog"), plain(clip, "")
    with tempfile.TemporaryDirectory() as folder:
        bank = bank_of(backbone, folder, "rex", "tom")
        ours, core = with_ours(model, clip, bank, "a <rex>"), with_core(model, bank, "rex")[0]
        other = comfy.utils.load_torch_file(str(bank.file("tom")))
        both = sample(with_core(model, bank, "rex", "tom")[0], positive, negative)

        # the core's LoRA loader before and after
        after = comfy.sd.load_lora_for_models(ours, None, other, 1.0, 0.0)[0]
        before = with_ours(with_core(model, bank, "tom")[0], clip, bank, "a <rex>")
        for loaded in (after, before):
            near(sample(loaded, positive, negative), both)

        # a LoRA hook on the text
        hooks = comfy.hooks.create_hook_lora(other, 1.0, 1.0)
        hooked = comfy.hooks.set_hooks_for_conditioning(positive, hooks)
        registered = [m.clone() for m in (ours, core)]
        equal(*(sample(m, hooked, negative) for m in registered))
        assert float((sample(ours, hooked, negative) - sample(ours, positive, negative)).abs().max()) > 1e-3

        # a ControlNet
        net = control_net()
        controlled = []
        for patched in (ours, core):
            hint = net.copy().set_cond_hint(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)), 1.0, (0.0, 1.0))
            text = [[positive[0][0], {**positive[0][1], "control": hint, "control_apply_to_uncond": True}]]
            controlled.append(sample(patched, text, negative))
        equal(*controlled)
        assert float((controlled[0] - sample(ours, positive, negative)).abs().max()) > 1e-3

        # another pack's replacement of an attention, its patch, its function around the model
        pictures = []
        for patched in (ours, core):
            patched = patched.clone()
            patched.set_model_attn2_replace(lambda q, k, v, extra: optimized_attention(q, k, 0.5 * v, extra["n_heads"]), "middle", 0)
            patched.set_model_attn2_patch(lambda q, k, v, extra: (q, 1.1 * k, v))
            patched.set_model_unet_function_wrapper(lambda apply, args: 0.9 * apply(args["input"], args["timestep"], **args["c"]))
            pictures.append(sample(patched, positive, negative))
        equal(*pictures)

        # weights that the host leaves off the device, patched one by one as they are used
        low = ours.clone()
        comfy.model_management.unload_all_models()
        low.load(torch.device("cpu"), lowvram_model_memory=1)
        picture = low.model.apply_model(torch.ones(1, 16, 16, 16), torch.tensor([5.0]), c_crossattn=positive[0][0])
        low.detach()
        full = ours.clone()
        full.load(torch.device("cpu"))
        near(picture, full.model.apply_model(torch.ones(1, 16, 16, 16), torch.tensor([5.0]), c_crossattn=positive[0][0]))
        full.detach()


def the_patches_come_and_go_with_the_prompt():
    model, clip, _ = doodle()
    backbone = host.ComfyBackbone(model, clip)
    positive, negative = plain(clip, "a dog"), plain(clip, "")
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        bank = bank_of(backbone, folder, "rex", "tom")
        rex, tom = (with_ours(model, clip, bank, f"a <{name}>") for name in ("rex", "tom"))
        bare, first, second = (sample(m, positive, negative) for m in (model, rex, tom))
        for unload in (False, True):
            for patched, want in ((tom, second), (rex, first), (model, bare), (rex, first), (tom, second)):
                if unload:
                    comfy.model_management.unload_all_models()
                equal(sample(patched, positive, negative), want)
    comfy.model_management.unload_all_models()
    assert not model.patches
    for k, v in model.model.state_dict().items():
        equal(v, before[k])
    assert not model.model_options["transformer_options"].get("patches") and not model.wrappers
