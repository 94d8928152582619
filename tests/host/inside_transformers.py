"""Checks of transformers inside a ComfyUI, as in inside.py: what the host makes of a LoRA file of Flux.1, Chroma, Lumina 2, Z-Image,
Qwen-Image, Stable Diffusion 3.5, Anima or Krea 2 with its own loader, concepts of a bank are too, on small random models of the host's own
classes.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from inside import doodle, equal

# isort: split

import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.text_encoders.flux
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.utils
import torch
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.bank.exchange import import_into
from pack.cidm_ops.bank.export import export_concept
from pack.nodes import host
from safetensors.torch import load_file, save_file
from subjects import call

NEWEST = hasattr(comfy.supported_models, "ZImage")
HEADS, WIDTH, TEXT, POOLED = 2, 64, 48, 32
FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": POOLED,
    "context_in_dim": TEXT,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": HEADS,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
} | ({"txt_ids_dims": []} if NEWEST else {})
CHROMA = {key: value for key, value in FLUX.items() if key not in ("vec_in_dim", "guidance_embed")} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": WIDTH,
    "hidden_dim": 32,
    "n_layers": 1,
    **({"vec_in_dim": None} if NEWEST else {}),
}
FLUX2 = FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "mlp_ratio": 3.0,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "guidance_embed": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
LUMINA: dict[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": WIDTH,
    "cap_feat_dim": TEXT,
    "n_layers": 2,
    "qk_norm": True,
    "n_heads": 4,
    "n_kv_heads": 2,
    "axes_dims": [4, 6, 6],
    "axes_lens": [300, 512, 512],
    "ffn_dim_multiplier": 4.0,
} | ({"rope_theta": 10000.0} if NEWEST else {})
Z_IMAGE = LUMINA | {
    "dim": 256,  # its modulation reads as many features of the time, whatever the width
    "n_heads": HEADS,
    "n_kv_heads": HEADS,
    "axes_dims": [32, 48, 48],
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
QWEN: dict[str, Any] = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "attention_head_dim": WIDTH // HEADS,
    "num_attention_heads": HEADS,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (8, 12, 12),
}
SD3: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "input_size": None,
    "depth": 2,  # its width is 64 times that
    "adm_in_channels": POOLED,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": TEXT, "out_features": 128}},
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
    "x_block_self_attn_layers": [0],
}
# As wide as the text that its encoders make, however small they are.
WIDE_SD3 = SD3 | {
    "adm_in_channels": 2 * POOLED,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
}
ANIMA: dict[str, Any] = {
    "image_model": "anima",
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": WIDTH,
    "crossattn_emb_channels": TEXT,
    "pos_emb_cls": "rope3d",
    "num_blocks": 2,
    "num_heads": HEADS,
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "rope_enable_fps_modulation": False,
}
KREA2: dict[str, Any] = {
    "image_model": "krea2",
    "features": WIDTH,
    "heads": HEADS,
    "kvheads": 1,
    "layers": 2,
    "channels": 16,
    "patch": 2,
    "txtlayers": 2,
    "txtdim": TEXT // 2,
    "txtheads": 2,
    "txtkvheads": 2,
}
CONFIGS = {"Flux": FLUX, "Chroma": CHROMA, "Lumina2": LUMINA, "QwenImage": QWEN, "SD3": SD3}
CONFIGS |= {"ZImage": Z_IMAGE, "Flux2": FLUX2, "Anima": ANIMA, "Krea2": KREA2} if NEWEST else {}
FILMS = ("QwenImage", "Anima", "Krea2")  # whose latents have an axis of frames
ARCHITECTURES = {
    "Flux": "flux1-2+2x64",
    "Chroma": "chroma-2+2x64",
    "Lumina2": "lumina2-2x64",
    "ZImage": "zimage-2x256",
    "QwenImage": "qwenimage-2x64",
    "SD3": "sd3-2x128",
    "Flux2": "flux2-2+2x64",
    "Anima": "anima-2x64",
    "Krea2": "krea2-2x64",
}
KOHYA, PEFT = ("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight")
# What the host has for one layer under two names, for another model, or with its rows in another order.
TURNED = "transformer_blocks.1.norm1_context.linear"
TWICE = {
    "Flux2": r"\.net\.|single_.*\.(to_[qkv]|proj_mlp|proj_out)\.|norm_out\.linear",
    "SD3": rf"norm_out\.linear|{TURNED}",
    "Krea2": r"attn\.to_out\.weight|norm_out\.linear",
}
OF_FLUX2 = r"linear_in|linear_out|to_qkv_mlp_proj|single_.*attn\.to_out|norm_out\.linear"


@cache
def model_of(kind: str) -> comfy.model_patcher.ModelPatcher:
    """A model of the host's own class, built past its detection, with random weights in fp32."""
    return built(kind, CONFIGS[kind])


def built(kind: str, settings: dict[str, Any]) -> comfy.model_patcher.ModelPatcher:
    """A model of a configuration."""
    config = getattr(comfy.supported_models, kind)(dict(settings))
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device=torch.device("cpu"))
    if kind == "Anima":  # whose adapter has one size
        base.diffusion_model.llm_adapter = small_adapter()
    randomise(base.diffusion_model)
    base.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(base, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def small_adapter() -> torch.nn.Module:
    """The adapter of Anima's texts, small but for its words."""
    from comfy.ldm.anima.model import LLMAdapter

    made = {"device": torch.device("cpu"), "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    return LLMAdapter(source_dim=TEXT, target_dim=TEXT, model_dim=TEXT, num_layers=1, num_heads=3, **made)


def randomise(module: torch.nn.Module) -> None:
    """Weights of the size that layers are trained to; the host leaves its own uninitialised."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        normed = "norm" in name or ".ln_" in name
        parameter.data.copy_(1 + 0.1 * value if normed and value.ndim == 1 else 0.5 * value / value.numel() ** 0.25)
    if isinstance(places := getattr(module, "pos_embed", None), torch.Tensor):
        places.normal_(0, 0.5, generator=generator)


@cache
def flux_clip() -> comfy.sd.CLIP:
    """The text encoders of Flux.1, small."""

    class Target:
        params: dict[str, Any] = {}
        clip = comfy.text_encoders.flux.flux_clip(dtype_t5=torch.float32)
        tokenizer = comfy.text_encoders.flux.FluxTokenizer

    small = {"hidden_size": POOLED, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    t5 = {"d_model": TEXT, "d_ff": 64, "d_kv": 16, "num_heads": 3, "num_layers": 2}
    options = {"dtype": torch.float32, "clip_l_model_config": small, "t5xxl_model_config": t5}
    clip = comfy.sd.CLIP(Target, model_options=options)
    randomise(clip.cond_stage_model)
    return clip


@cache
def qwen_clip() -> comfy.sd.CLIP:
    """The text encoder of Qwen-Image, small but for its words; what it would see pictures with is left as it is."""

    class Target:
        params: dict[str, Any] = {}
        clip = comfy.text_encoders.qwen_image.te()
        tokenizer = comfy.text_encoders.qwen_image.QwenImageTokenizer

    small = {"hidden_size": TEXT, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
    clip = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32, "qwen25_7b_model_config": small})
    randomise(clip.cond_stage_model.qwen25_7b.transformer.model)
    return clip


@cache
def sd3_clip() -> comfy.sd.CLIP:
    """The text encoders of Stable Diffusion 3.5, small but for the width of T5's states, to which the host fills up those of the CLIPs."""

    class Target:
        params: dict[str, Any] = {}
        clip = comfy.text_encoders.sd3_clip.sd3_clip(dtype_t5=torch.float32)
        tokenizer = comfy.text_encoders.sd3_clip.SD3Tokenizer

    small = {"hidden_size": POOLED, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    t5 = {"d_model": 4096, "d_ff": 64, "d_kv": 16, "num_heads": 3, "num_layers": 1}
    configs = {"clip_l_model_config": small, "clip_g_model_config": small, "t5xxl_model_config": t5}
    clip = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32, **configs})
    for part in (clip.cond_stage_model.clip_l, clip.cond_stage_model.clip_g, clip.cond_stage_model.t5xxl.transformer.encoder):
        randomise(part)
    clip.cond_stage_model.t5xxl.transformer.shared.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    return clip


@cache
def anima_clip() -> comfy.sd.CLIP:
    """The text encoder of Anima, small but for its words."""
    import comfy.text_encoders.anima

    class Target:
        params: dict[str, Any] = {}
        clip = comfy.text_encoders.anima.te()
        tokenizer = comfy.text_encoders.anima.AnimaTokenizer

    small = {"hidden_size": TEXT, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    clip = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32, "qwen3_06b_model_config": small})
    randomise(clip.cond_stage_model)
    return clip


@dataclass(frozen=True)
class Spelling:
    """How a tool names layers: fused as the host's modules, or apart as in diffusers; what begins the names and how they are written."""

    fused: bool
    key: Callable[[str], str]
    parts: tuple[str, str]
    alpha: bool


def flat(root: str) -> Callable[[str], str]:
    return lambda name: root + name.replace(".", "_")


def dotted(root: str) -> Callable[[str], str]:
    return lambda name: root + name


SPELLINGS = {
    "kohya": Spelling(True, flat("lora_unet_"), KOHYA, True),
    "the host's own": Spelling(True, dotted("diffusion_model."), KOHYA, True),
    "ai-toolkit, fused": Spelling(True, dotted("diffusion_model."), PEFT, False),
    "diffusers": Spelling(False, dotted("transformer."), PEFT, False),
    "diffusers with alpha": Spelling(False, dotted("transformer."), PEFT, True),
    "SimpleTuner": Spelling(False, flat("lycoris_"), KOHYA, True),
    "OneTrainer": Spelling(False, flat("lora_transformer_"), KOHYA, True),
    "ai-toolkit": Spelling(False, dotted("diffusion_model."), PEFT, False),
}
ALL = ("kohya", "the host's own", "ai-toolkit, fused")
# What the host's own loader reads, by the class of the model: of Lumina's layers apart it reads none, or cuts them wrongly.
READ = {
    "Flux": (*ALL, "diffusers", "diffusers with alpha", "SimpleTuner", "OneTrainer"),
    "Chroma": (*ALL, "diffusers", "diffusers with alpha", "SimpleTuner", "OneTrainer"),
    "Lumina2": ALL,
    "ZImage": (*ALL, "diffusers", "diffusers with alpha", "SimpleTuner", "ai-toolkit"),
    "QwenImage": (*ALL, "diffusers", "diffusers with alpha", "SimpleTuner", "ai-toolkit"),
    "SD3": (*ALL, "diffusers", "diffusers with alpha", "OneTrainer"),
    "Flux2": (*ALL, "diffusers", "diffusers with alpha", "SimpleTuner", "OneTrainer"),
    "Anima": ALL,
    "Krea2": (*ALL, "diffusers", "diffusers with alpha", "SimpleTuner", "ai-toolkit"),
}


TABLES = {"SD3": comfy.utils.mmdit_to_diffusers}
TABLES |= {"ZImage": comfy.utils.z_image_to_diffusers, "Krea2": comfy.utils.krea2_to_diffusers} if NEWEST else {}


def places(kind: str, fused: bool) -> Iterator[tuple[str, int, int]]:
    """The layers that a tool changes, by its own name: with how many rows and columns each is, from the host's tables and modules."""
    modules = dict(model_of(kind).model.diffusion_model.named_modules())
    if fused or kind == "QwenImage":  # whose names are everybody's
        known = {at.module: layer for layer, at in host.layout(model_of(kind)).items() if kind != "SD3" or layer != TURNED}
        yield from ((name, modules[name].out_features, modules[name].in_features) for name in known)
        return
    for name, to in TABLES.get(kind, comfy.utils.flux_to_diffusers)(CONFIGS[kind]).items():
        key, place = (to, None) if isinstance(to, str) else to[:2]
        module = modules.get(key.removesuffix(".weight"))
        if key.endswith(".weight") and isinstance(module, torch.nn.Linear) and not re.search(TWICE.get(kind, OF_FLUX2), name):
            yield name.removesuffix(".weight"), place[2] if place else module.out_features, module.in_features


def lora_file(kind: str, spelling: Spelling, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random factors of all layers, with ranks and alphas of their own."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for i, (name, rows, columns) in enumerate(sorted(places(kind, spelling.fused))):
        rank, key = 1 + i % 3, spelling.key(name)
        up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
        state |= {f"{key}.{spelling.parts[0]}": 0.1 * up, f"{key}.{spelling.parts[1]}": 0.1 * down}
        if spelling.alpha:
            state[f"{key}.alpha"] = torch.tensor(0.5 * rank + i % 2)
    return state


def weights_of(model: comfy.model_patcher.ModelPatcher) -> dict[str, torch.Tensor]:
    """The weights of a model with its patches."""
    model.patch_model()
    try:
        return {key: weight.clone() for key, weight in model.model.state_dict().items()}
    finally:
        model.unpatch_model()


def check_same(found, wanted, kind: str, what: str) -> None:
    """Both changed the same weights of the base to within 1e-6 of the largest change."""
    base, found, wanted = (weights_of(m) for m in (model_of(kind), found, wanted))
    changed = [key for key in base if not torch.equal(base[key], wanted[key])]
    assert len(changed) > 10, f"{what}: the host changed {len(changed)} weights"
    scale = max(float((wanted[key] - base[key]).abs().max()) for key in changed)
    wrong = {key: float((found[key] - wanted[key]).abs().max()) for key in base}
    worst = max(wrong, key=wrong.__getitem__)
    assert wrong[worst] <= 1e-6 * scale, f"{what}: {worst} differs by {wrong[worst]:.3g} of {scale:.3g}"


def imported(folder: str, kind: str, **files: dict[str, torch.Tensor]) -> Bank:
    """A bank with files, each as a concept of its name."""
    bank = Bank(Path(folder) / "bank")
    for name, state in files.items():
        save_file(state, Path(folder) / f"{name}.safetensors")
        bank = import_into(bank, Path(folder) / f"{name}.safetensors", architecture=ARCHITECTURES[kind])[0]
    return bank


def loaded(kind: str, state: dict[str, torch.Tensor], strength: float = 1.0, model=None):
    """The model with a file, by the host's own loader."""
    return comfy.sd.load_lora_for_models(model or model_of(kind), None, state, strength, 0)[0]


def the_file_of_any_tool_is_what_the_host_makes_of_it():
    for kind in CONFIGS:
        for tool in READ[kind]:
            state = lora_file(kind, SPELLINGS[tool])
            with tempfile.TemporaryDirectory() as folder:
                bank = imported(folder, kind, rex=state)
                found = call("CIDMAggregate", model=model_of(kind), clip=doodle()[1], bank=bank, text="a <rex>")[0]
            check_same(found, loaded(kind, state), kind, f"{kind}, {tool}")


def the_export_and_the_file_of_a_bank_are_read_by_the_hosts_loader():
    for kind in CONFIGS:
        state = lora_file(kind, SPELLINGS["kohya"])
        with tempfile.TemporaryDirectory() as folder:
            bank = imported(folder, kind, rex=state)
            (file,) = export_concept(bank.get("rex"), Path(folder) / "out")
            exported, own = load_file(file), load_file(bank.file("rex"))
        check_same(loaded(kind, exported), loaded(kind, state), kind, f"{kind}, the export")
        if kind not in ("Lumina2", "Flux2"):
            check_same(loaded(kind, own), loaded(kind, state), kind, f"{kind}, the bank's file")


def the_concepts_of_a_prompt_add_up_as_strongly_as_it_says():
    for kind in CONFIGS:
        one, two = (lora_file(kind, SPELLINGS[READ[kind][-1]], seed) for seed in (1, 2))
        with tempfile.TemporaryDirectory() as folder:
            bank = imported(folder, kind, rex=one, tom=two, idle=one)
            given = {"model": model_of(kind), "clip": doodle()[1], "bank": bank}
            found, shown = call("CIDMAggregate", **given, text="a <rex:0.8> and a <tom>:-0.5", strength=1.5)[:2]
            bare = call("CIDMAggregate", **given, text="a dog")[0]
        check_same(found, loaded(kind, two, -0.75, loaded(kind, one, 1.2)), kind, kind)
        assert shown.splitlines()[0].split() == ["rex", "tom"] and "1.200" in shown and "-0.750" in shown and "idle" not in shown
        for key, weight in weights_of(model_of(kind)).items():
            equal(weights_of(bare)[key], weight)
            break


def sample(model, positive, negative) -> torch.Tensor:
    latent = torch.zeros(1, 16, 8, 8)
    noise = comfy.sample.prepare_noise(latent, 1)
    return comfy.sample.sample(model, noise, 2, 1.5, "euler", "simple", positive, negative, latent, seed=1)


def the_picture_of_flux_is_that_of_the_hosts_own_loader():
    clip = flux_clip()
    state = lora_file("Flux", SPELLINGS["kohya"])
    for i, part in enumerate(("self_attn_q_proj", "mlp_fc1")):
        rows = 64 if i else POOLED
        key = f"lora_te1_text_model_encoder_layers_{i}_{part}"
        state |= {f"{key}.lora_up.weight": torch.full((rows, 2), 0.1), f"{key}.lora_down.weight": torch.full((2, POOLED), 0.2)}
        state[f"{key}.alpha"] = torch.tensor(1.0)

    def encoded(clip, text):
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    with tempfile.TemporaryDirectory() as folder:
        save_file(state, Path(folder) / "rex.safetensors")
        bank, (rex,), _ = import_into(
            Bank(Path(folder) / "bank"), Path(folder) / "rex.safetensors", architecture=ARCHITECTURES["Flux"], triggers=["ohwx cat"]
        )
        assert len(rex.text_factors) == 2
        (file,) = export_concept(rex, Path(folder) / "out")
        exported = load_file(file)
        given = {"clip": clip, "bank": bank}
        model, positive, negative, _ = call("CIDMPaint", model=model_of("Flux"), **given, prompt="a <rex:0.8> in the snow", negative="fog")
        alone = call("CIDMEncodePrompt", **given, text="a <rex:0.8> in the snow")[0]
    found = sample(model, positive, negative)
    for file in (state, exported):
        theirs, their_clip = comfy.sd.load_lora_for_models(model_of("Flux"), clip, file, 0.8, 0.8)
        wanted = sample(theirs, encoded(their_clip, "a ohwx cat in the snow"), encoded(their_clip, "fog"))
        assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    equal(alone[0][0], positive[0][0])
    equal(alone[0][1]["pooled_output"], positive[0][1]["pooled_output"])
    bare = sample(model_of("Flux"), encoded(clip, "a ohwx cat in the snow"), encoded(clip, "fog"))
    assert torch.isfinite(found).all() and float((found - bare).abs().max()) > 1e-2 * float(bare.abs().max())


def the_picture_of_stable_diffusion_3_is_that_of_the_hosts_own_loader():
    clip, model = sd3_clip(), built("SD3", WIDE_SD3)
    state = lora_file("SD3", SPELLINGS["kohya"])
    state = {key: value for key, value in state.items() if "context_embedder" not in key and "y_embedder" not in key}
    for i, number in enumerate((1, 2)):
        key = f"lora_te{number}_text_model_encoder_layers_{i}_self_attn_q_proj"
        state |= {f"{key}.lora_up.weight": torch.full((POOLED, 2), 0.1), f"{key}.lora_down.weight": torch.full((2, POOLED), 0.2)}
        state[f"{key}.alpha"] = torch.tensor(1.0)

    def encoded(clip, text):
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    with tempfile.TemporaryDirectory() as folder:
        save_file(state, Path(folder) / "rex.safetensors")
        bank, (rex,), _ = import_into(
            Bank(Path(folder) / "bank"), Path(folder) / "rex.safetensors", architecture=ARCHITECTURES["SD3"], triggers=["ohwx cat"]
        )
        assert len(rex.text_factors) == 2
        (file,) = export_concept(rex, Path(folder) / "out")
        exported = load_file(file)
        given = {"clip": clip, "bank": bank}
        painter, positive, negative, _ = call("CIDMPaint", model=model, **given, prompt="a <rex:0.8> in the snow", negative="fog")
    found = sample(painter, positive, negative)
    for file in (state, exported):
        theirs, their_clip = comfy.sd.load_lora_for_models(model, clip, file, 0.8, 0.8)
        wanted = sample(theirs, encoded(their_clip, "a ohwx cat in the snow"), encoded(their_clip, "fog"))
        assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    bare = sample(model, encoded(clip, "a ohwx cat in the snow"), encoded(clip, "fog"))
    assert torch.isfinite(found).all() and float((found - bare).abs().max()) > 1e-2 * float(bare.abs().max())


def refused(said: str, node: str, **inputs: Any) -> None:
    """The node ends in one error that says so."""
    try:
        call(node, **inputs)
    except ValueError as error:
        assert said in str(error), f"{node}: {error}"
    else:
        raise AssertionError(f"{node} took it")


def the_rest_is_refused_by_name():
    with tempfile.TemporaryDirectory() as folder:
        bank = imported(folder, "Flux", rex=lora_file("Flux", SPELLINGS["kohya"]))
        given = {"model": model_of("Flux"), "clip": flux_clip(), "bank": bank}
        refused("all layers of Flux.1 read one text", "CIDMAggregate", **given, text="a <rex>", mode="soft")
        spared = call("CIDMAggregationSettings", negative=False)
        refused("does not say which texts are negative", "CIDMAggregate", **given, text="a <rex>", settings=spared)
        late, placed = (call("CIDMAggregationSettings", **how) for how in ({"start_percent": 0.1}, {"reach": "where it stands"}))
        refused("a late start does not work on Flux.1 yet", "CIDMPaint", **given, prompt="a <rex>", settings=late)
        refused("'where it stands' does not work on Flux.1 yet", "CIDMPaint", **given, prompt="a <rex>", settings=placed)
        refused("this model is Flux.1, which learns concepts by Train Concept", "CIDMInfusion", **given, text="a <rex>")
        text, latent, sigmas = [[torch.zeros(1, 4, TEXT), {}]], {"samples": torch.ones(1, 16, 8, 8)}, torch.tensor([0.9, 0])
        picture = {"conditioning": text, "latent": latent, "sigmas": sigmas}
        refused("Flux.1, which learns concepts by Train Concept", "CIDMInvertPicture", model=model_of("Flux"), **picture)
        refused("weaving, Infusion and views of a prompt do not work", "CIDMWeave", **given, trajectory=None, text="snow")
        refused("this model is chroma-2+2x64", "CIDMAggregate", **given | {"model": model_of("Chroma")}, text="a <rex>")
        refused("learned on flux1-2+2x64", "CIDMAggregate", **given | dict(zip(("model", "clip"), doodle(), strict=False)), text="a <rex>")


def the_host_tells_the_families_apart():
    for kind, architecture in ARCHITECTURES.items():
        if kind in CONFIGS:
            base = host.base_of(model_of(kind), doodle()[1])
            assert base.architecture == architecture, base.architecture
            modules = dict(model_of(kind).model.diffusion_model.named_modules())
            rows = {name: 0 for name in {at.module for at in base.layers.values()}}
            for at in base.layers.values():
                rows[at.module] += at.rows
            assert all(count == modules[name].out_features for name, count in rows.items())
            blocks = [
                n for n, m in modules.items() if isinstance(m, torch.nn.Linear) and ("blocks" in n or "layers" in n or "refiner" in n)
            ]
            assert not {n for n in blocks if "distilled" not in n} - {*rows}, "every linear layer of the blocks is known"


def the_model_that_is_made_of_a_known_one_is_no_known_one():
    config = type("ChromaRadiance", (comfy.supported_models.Chroma,), {})
    named = host.family_in(type("Patcher", (), {"model": type("Model", (), {"model_config": config(dict(CHROMA))})}))
    assert named is None, "it is made of the class of Chroma, and works on pixels"
    own = type("OfAPack", (comfy.supported_models.Flux,), {})
    assert host.family_in(type("Patcher", (), {"model": type("Model", (), {"model_config": own(dict(FLUX))})})).name == "flux1"
