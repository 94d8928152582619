"""Checks that run inside a ComfyUI, with its Python and its classes; inside_all.py runs them.

Each function whose name starts with ``the_`` is one; test_inside.py makes a test of it. Those of painting are in inside_painting.py.
"""

import importlib.util
import json
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

PACK, RESULTS = Path(sys.argv[1]), Path(sys.argv[2])
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import utils.extra_config  # noqa: E402, F401 -- as main.py does: comfy has a module of that name
from comfy_extras import nodes_model_advanced  # noqa: E402

spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)

from pack.cidm_ops.adapters import linears  # noqa: E402
from pack.cidm_ops.bank.bank import Bank  # noqa: E402
from pack.cidm_ops.bank.concept_file import load_concept  # noqa: E402
from pack.cidm_ops.bank.names import canonical  # noqa: E402
from pack.cidm_ops.concept_text import ConceptText  # noqa: E402
from pack.cidm_ops.doodle.concepts import CONCEPTS, examples  # noqa: E402
from pack.cidm_ops.doodle.files import TEN  # noqa: E402
from pack.cidm_ops.lowrank import LowRank  # noqa: E402
from pack.cidm_ops.models.sd import DOODLE, SD1, SDXL  # noqa: E402
from pack.cidm_ops.painting.compose import mix  # noqa: E402
from pack.cidm_ops.row_plan import RowPlan  # noqa: E402
from pack.cidm_ops.training.dataset import Dataset  # noqa: E402
from pack.cidm_ops.training.method import Task  # noqa: E402
from pack.cidm_ops.training.methods import configure  # noqa: E402
from pack.cidm_ops.training.task import learn_into  # noqa: E402
from pack.nodes import host, native, patches  # noqa: E402

ROUNDING = 2**8 * 2**-24


def equal(a, b):
    """Both are the same to the last bit: they come from the same sums in the same order."""
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    assert torch.equal(a, b), f"differ by {float((a - b).abs().max()):.3g}, the same to the last bit expected"


def near(a, b, scale=None):
    """Both differ by what fp32 rounds, and by no machine's order of sums: at most 2^8 roundings (2^-24) of the largest value, 1.5e-5.

    A prediction of ``doubled`` models is a sum in fp64, where the order does not show. What is left is fp32 at the edges: latents and
    answers, and weights into which the host merges a LoRA. Guidance g at noise level s multiplies that by (2 g - 1) s, here by 102 or
    less, close to 2^7. Text encoders and image towers stay in fp32: two layers of six sums over at most 512 terms round like a
    random walk of 2^8 steps at most. ``scale`` is the largest value that is rounded where that is not one of ``b``.
    """
    difference, bound = float((a - b).abs().max()), ROUNDING * float(b.abs().max() if scale is None else scale)
    assert difference <= bound, f"differ by {difference:.3g}, at most {bound:.3g} expected"


def doodle():
    return native.model(), native.clip(), native.vae()


def doubled(model):
    """The model, which computes in fp64 from here on: what its sums lose by their order is then below what ``near`` allows."""
    model.model.diffusion_model.double()
    model.model.diffusion_model.dtype = torch.float64
    return model


def data_of(name, count=3):
    drawn = examples(CONCEPTS[name], count)
    return Dataset([torch.from_numpy(e.picture).permute(2, 0, 1).float() / 255 for e in drawn], [e.caption for e in drawn])


def learn(bank, backbone, name="dog", *, on_step=lambda trainer: None, **settings):
    """Learns one of Doodle's concepts with some settings of the default method."""
    task = Task(name=name, class_word=name, config=configure("cidm", **settings))
    return learn_into(bank, backbone, data_of(name), task, on_step=on_step)


def random_factors(backbone, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(m.weight.shape[0], 4, generator=generator) * 0.1, torch.randn(4, m.weight.shape[1], generator=generator) * 0.1
        )
        for name, m in linears(backbone, "cross_attention").items()
    }


def sample(model, positive, negative, seed=1, steps=2):
    latent = torch.zeros(1, 16, 16, 16)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(model, noise, steps, 4.0, "euler", "normal", positive, negative, latent, seed=seed)


def plain(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def wise(context):
    return [[ConceptText.of(context.mean(0, keepdim=True), [RowPlan(context)]), {}]]


def the_layers_have_the_names_and_the_order_of_diffusers():
    backbone = host.ComfyBackbone(*doodle())
    assert list(backbone.cross_attention) == [
        f"{place}.transformer_blocks.0.attn2"
        for place in (
            "down_blocks.1.attentions.0", "down_blocks.2.attentions.0", "mid_block.attentions.0",
            "up_blocks.0.attentions.0", "up_blocks.0.attentions.1", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1",
        )
    ]  # fmt: skip
    assert backbone.architecture == "sd1-7x160"
    assert backbone.schedule.prediction == "v"
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    near(backbone.schedule.signal.square(), torch.cumprod(1 - betas, 0))


def the_text_states_are_those_of_the_host():
    clip = native.clip()
    text = host.ComfyText(clip)
    for prompt in ("", "a red dog on the beach", "dog " * 100):
        ids = text.tokenize(prompt)
        own = text.encode_text(ids, text.token_rows(ids))[0].flatten(0, 1)
        near(own, clip.encode_from_tokens(clip.tokenize(prompt))[0])
    skipped = clip.clone()
    skipped.clip_layer(-2)
    ids = text.tokenize("a red dog")
    own = host.ComfyText(skipped).encode_text(ids, text.token_rows(ids))[0]
    near(own, skipped.encode_from_tokens(clip.tokenize("a red dog")))
    assert float((own - text.encode_text(ids, text.token_rows(ids))[0]).abs().max()) > 1e-3


def the_word_weights_are_those_of_the_host():
    clip = native.clip()
    text = host.ComfyText(clip)
    prompt = "a (red:1.4) dog on the (beach:0.6)"
    ids = text.tokenize(prompt)
    states = text.encode_text(ids, text.token_rows(ids))[0]
    near(text.emphasise(prompt, states), clip.encode_from_tokens(clip.tokenize(prompt)))


def the_text_states_have_a_gradient_in_the_rows():
    text = host.ComfyText(native.clip())  # loaded in inference mode, as the host does
    before = [m.forward.__qualname__ for m in text.clip.cond_stage_model.modules()]
    with torch.inference_mode(False):
        ids = text.tokenize("a red dog")
        rows = text.token_rows(ids).requires_grad_()
        states = text.encode_text(ids, rows)[0]
        near(states.detach(), text.encode_text(ids, rows.detach())[0])
        direction = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
        (states * direction).sum().backward()
        step = 1e-3 * rows.grad / rows.grad.norm()
        up, down = (float((text.encode_text(ids, rows.detach() + s * step)[0] * direction).double().sum()) for s in (1, -1))
        assert abs((up - down) / 2 / float((rows.grad * step).sum()) - 1) < 0.02
    assert [m.forward.__qualname__ for m in text.clip.cond_stage_model.modules()] == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in text.clip.cond_stage_model.modules())


def the_prediction_is_that_of_the_host():
    model, clip, vae = doodle()
    backbone = host.ComfyBackbone(doubled(model), clip, vae)
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 16, 16, 16, generator=generator), torch.randn(2, 77, 160, generator=generator)
    t = torch.tensor([20, 900])
    sigma = model.model.model_sampling.sigmas[t]
    scale = (1 + sigma**2).sqrt().view(-1, 1, 1, 1)
    denoised = model.model.apply_model(x * scale, sigma, c_crossattn=context)
    near(backbone.predict(x, t, context), (x / scale - denoised) * scale / sigma.view(-1, 1, 1, 1))
    near(backbone.predict(x, t, context[:, None].expand(-1, 7, -1, -1)), backbone.predict(x, t, context))


def the_pictures_come_back_from_the_latents():
    model, clip, vae = doodle()
    backbone = host.ComfyBackbone(model, clip, vae)
    pictures = torch.stack(list(data_of("dog").pictures)) * 2 - 1
    latents = backbone.encode_image(pictures)
    assert latents.shape == (3, 16, 16, 16)
    equal(latents, model.model.process_latent_in(vae.encode((pictures.movedim(1, -1) + 1) / 2)))
    assert backbone.decode_latent(latents).shape == pictures.shape
    assert float((backbone.decode_latent(latents) - pictures).abs().mean()) < 0.2


def the_image_tower_loads():
    out = native.vision().encode_image(torch.rand(2, 128, 128, 3))
    assert out["image_embeds"].shape == (2, 128)


def the_base_is_the_same_after_learning():
    model, clip, vae = doodle()
    modules = {"unet": model.model, "text": clip.cond_stage_model, "vae": vae.first_stage_model}
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in modules.items()}
    parameters = [p for m in modules.values() for p in m.parameters()]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        backbone = host.ComfyBackbone(model, clip, vae)
        bank, steps = Bank(folder), []
        for name in ("dog", "cat"):
            bank, concept, losses, _ = learn(bank, backbone, name, steps=4, lr=1e-3, on_step=steps.append)
        assert len(steps) == 8 and len(losses) == 4 and bank.names == ["dog", "cat"]
        assert all(f.up.abs().max() > 0 for f in concept.factors.values()), "a factor did not learn"
        again = learn(bank, backbone, "cat", steps=4, lr=1e-3, on_step=steps.append)
        assert len(steps) == 8 and len(again[2]) == 4, "the same task was learned twice"
    after = {n: m.state_dict() for n, m in modules.items()}
    for n in before:
        for k, v in before[n].items():
            equal(after[n][k], v)
    assert all(a is b for a, b in zip(parameters, (p for m in modules.values() for p in m.parameters()), strict=True))
    assert not any(p.grad is not None for p in parameters)


def the_stopped_run_goes_on_bit_for_bit():
    losses, factors = [], []
    for stop in (0, 3):
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
            backbone = host.ComfyBackbone(*doodle())
            task = dict(steps=6, lr=1e-2, norm_stop=2, checkpointing=True)

            def cancel(run, at=stop):
                if run.step == at:
                    raise KeyboardInterrupt

            try:
                learn(Bank(folder), backbone, **task, on_step=cancel)
            except KeyboardInterrupt:
                assert not Bank(folder).names
            concept = learn(Bank(folder), backbone, **task).concept
            losses.append(concept.training["losses"])
            factors.append(concept.factors)
    assert losses[0] == losses[1]
    for n, f in factors[0].items():
        equal(factors[1][n].up, f.up)
        equal(factors[1][n].down, f.down)


def the_words_that_begin_near_go_on_bit_for_bit():
    """Doodle's dog is in the bank; pictures of it are learned again under another name, stopped, and gone on with."""
    found = []
    for stop in (0, 2):
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
            backbone, bank = host.ComfyBackbone(*doodle()), Bank(folder).add(load_concept(TEN / "dog.safetensors"))
            task = Task(name="rex", class_word="dog", config=configure("cidm", start="nearest", steps=4, lr=4e-3, norm_stop=2.0))

            def cancel(run, at=stop):
                if run.step == at:
                    raise KeyboardInterrupt

            try:
                learn_into(bank, backbone, data_of("dog"), task, on_step=cancel)
            except KeyboardInterrupt:
                assert Bank(folder).names == ["dog"]
            concept = learn_into(Bank(folder), backbone, data_of("dog"), task).concept
            assert concept.training["began_as"] == "dog", "its words know these pictures"
            found.append(concept)
    assert found[0].training["losses"] == found[1].training["losses"]
    for encoder, rows in found[0].tokens.items():
        equal(found[1].tokens[encoder], rows)
    for n, f in found[0].factors.items():
        equal(found[1].factors[n].up, f.up)


def the_half_precision_base_learns_too():
    model, clip, vae = doodle()
    model.model.diffusion_model.half()
    model.model.diffusion_model.dtype = torch.float16
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        backbone = host.ComfyBackbone(model, clip, vae)
        concept = learn(Bank(folder), backbone, steps=2).concept
    assert all(f.up.dtype == torch.float32 and f.up.isfinite().all() for f in concept.factors.values())
    assert concept.fingerprint == host.ComfyBackbone(*doodle()).fingerprint


def the_fp8_base_learns_too_and_stays_as_it_is():
    model, clip, vae = doodle()
    config = native.Doodle(native.UNET)
    config.set_inference_dtype(torch.float8_e4m3fn, torch.float32)
    base = config.get_model({}, "")
    base.load_model_weights(dict(model.model.diffusion_model.state_dict()), "")
    base.eval().requires_grad_(False)
    quantised = comfy.model_patcher.ModelPatcher(base, load_device=model.load_device, offload_device=model.offload_device)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    assert any(v.dtype == torch.float8_e4m3fn for v in before.values())
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        backbone = host.ComfyBackbone(quantised, clip, vae)
        assert backbone.dtype == torch.float32
        for precision in ("as_model", "bf16"):
            concept = learn(Bank(folder), backbone, steps=2, precision=precision).concept
            assert all(f.up.isfinite().all() and f.up.abs().max() > 0 for f in concept.factors.values())
    for k, v in base.state_dict().items():
        assert v.dtype == before[k].dtype
        equal(v.float(), before[k].float())


def the_sampling_that_a_node_has_set_is_the_one_that_is_learned():
    model, clip, vae = doodle()
    doubled(model)
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 16, 16, 16, generator=generator), torch.randn(2, 77, 160, generator=generator)
    t = torch.tensor([100, 800])
    nodes = nodes_model_advanced.ModelSamplingSD3(), nodes_model_advanced.ModelSamplingDiscrete()
    for kind, patched in (("flow", nodes[0].patch(model, 3.0)[0]), ("eps", nodes[1].patch(model, "eps", False)[0])):
        with torch.inference_mode(False):
            backbone = host.ComfyBackbone(patched, clip, vae)
            assert backbone.schedule.prediction == kind
            answer = backbone.predict(x, t, context)
        signal, noise = (v[t].view(-1, 1, 1, 1) for v in (backbone.schedule.signal, backbone.schedule.sigma))
        clean = x - noise * answer if kind == "flow" else (x - noise * answer) / signal
        patched.patch_model()
        try:
            level = backbone.schedule.sigma[t] if kind == "flow" else (noise / signal).flatten()
            denoised = model.model.apply_model(x if kind == "flow" else x / signal, level, c_crossattn=context)
        finally:
            patched.unpatch_model()
        near(clean, denoised)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
            losses = learn(Bank(folder), backbone, steps=2, min_snr=5.0).losses
            assert all(0 < loss < 100 for loss in losses)


def the_text_encoder_learns_too():
    model, clip, vae = doodle()
    with tempfile.TemporaryDirectory() as folder:
        with torch.inference_mode(False):
            backbone = host.ComfyBackbone(model, clip, vae)
            bank, concept, *_ = learn(Bank(folder), backbone, steps=2, lr_text=1e-2)
        assert len(concept.text_factors) == 12 and all(f.up.abs().max() > 0 for f in concept.text_factors.values())
        mixture = mix(backbone, bank, "a <dog> on the beach")
        changed, same = (patches.conditioning(clip, [m])[0][0].plans[0].layers for m in (mixture, replace(mixture, strengths={})))
        assert float((changed - same).abs().max()) > 1e-3
        lora = safetensors.torch.load_file(bank.file("dog"))
        loaded = comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}))
        assert len(loaded) == 12, "the host's loader finds the text factors"


def the_room_for_a_step_can_grow():
    backbone = host.ComfyBackbone(*doodle())
    x, context = torch.randn(1, 16, 16, 16), torch.randn(1, 77, 160)
    before = backbone.predict(x, torch.tensor([500]), context)
    backbone.free_memory()
    equal(backbone.predict(x, torch.tensor([500]), context), before)


def the_model_of_another_kind_is_refused():
    model, clip, _ = doodle()
    model.model.model_config.unet_config["in_channels"] = 9
    try:
        host.ComfyBackbone(model, clip)
    except ValueError as error:
        assert "Stable Diffusion 1" in str(error)
    else:
        raise AssertionError("an inpainting model was accepted")
    finally:
        model.model.model_config.unet_config["in_channels"] = DOODLE.latent_channels


def the_names_of_the_original_layout_are_those_of_the_host():
    shapes = (
        (SD1, 2, [1, 2, 4, 4], [1] * 6 + [0, 0], [1] * 9 + [0] * 3, 1),
        (SDXL, 2, [1, 2, 4], [0, 0, 2, 2, 10, 10], [0] * 3 + [2] * 3 + [10] * 3, 10),
        (DOODLE, 1, [1, 1, 1], [0, 1, 1], [0, 0, 1, 1, 1, 1], 1),
    )
    for family, resnets, channels, down, up, middle in shapes:
        config = dict(num_res_blocks=[resnets] * len(channels), channel_mult=channels)
        config |= dict(transformer_depth=down, transformer_depth_output=up, transformer_depth_middle=middle)
        names = comfy.utils.unet_to_diffusers(config).items()
        pairs = [(d, c) for d, c in ((d.removesuffix(".weight"), c.removesuffix(".weight")) for d, c in names) if "bias" not in d]
        for ours, theirs in pairs:
            if "class_embedding" not in ours:
                expected = None if "norm" in ours else ours
                assert canonical(f"lora_unet_{theirs.replace('.', '_')}", family) == expected, theirs
                assert canonical(f"diffusion_model.{theirs}", family) == expected, theirs


def run(checks):
    """Every function of a module whose name starts with ``the_``; what went wrong with it is kept under its name."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, check in [(n, c) for n, c in checks.items() if n.startswith("the_")]:
        try:
            with torch.inference_mode():  # as the executor does
                check()
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
        RESULTS.write_text(json.dumps(results))
