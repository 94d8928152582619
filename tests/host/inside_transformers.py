"""Checks of transformers inside a ComfyUI, as in inside.py: what the host makes of a LoRA file of Flux.1, Chroma, Lumina 2, Z-Image,
Qwen-Image, Stable Diffusion 3.5, Anima or Krea 2 with its own loader, concepts of a bank are too, on small random models of the host's own
classes.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inside import doodle, equal

# isort: split

import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from host_transformers import ARCHITECTURES, CHROMA, CONFIGS, FLUX, NEWEST, POOLED, TEXT, WIDE_SD3, built, flux_clip, model_of, sd3_clip
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.bank.exchange import import_into
from pack.cidm_ops.bank.export import export_concept
from pack.nodes import host
from safetensors.torch import load_file, save_file
from subjects import call

KOHYA, PEFT = ("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight")
# What the host has for one layer under two names, for another model, or with its rows in another order.
TURNED = "transformer_blocks.1.norm1_context.linear"
TWICE = {
    "Flux2": r"\.net\.|single_.*\.(to_[qkv]|proj_mlp|proj_out)\.|norm_out\.linear",
    "SD3": rf"norm_out\.linear|{TURNED}",
    "Krea2": r"attn\.to_out\.weight|norm_out\.linear",
}
OF_FLUX2 = r"linear_in|linear_out|to_qkv_mlp_proj|single_.*attn\.to_out|norm_out\.linear"


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


def check_picture(kind: str, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, state: dict, texts: dict[str, int]) -> None:
    """What a prompt paints with a file that changes layers of text encoders too, ``texts`` with so many rows, is what the host's own loader
    makes of it, and of what the bank exports.
    """
    for key, rows in texts.items():
        state |= {f"{key}.lora_up.weight": torch.full((rows, 2), 0.1), f"{key}.lora_down.weight": torch.full((2, POOLED), 0.2)}
        state[f"{key}.alpha"] = torch.tensor(1.0)

    def encoded(clip, text):
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    with tempfile.TemporaryDirectory() as folder:
        save_file(state, Path(folder) / "rex.safetensors")
        bank, (rex,), _ = import_into(
            Bank(Path(folder) / "bank"), Path(folder) / "rex.safetensors", architecture=ARCHITECTURES[kind], triggers=["ohwx cat"]
        )
        assert len(rex.text_factors) == len(texts)
        (file,) = export_concept(rex, Path(folder) / "out")
        exported = load_file(file)
        given = {"clip": clip, "bank": bank}
        painter, positive, negative, _ = call("CIDMPaint", model=model, **given, prompt="a <rex:0.8> in the snow", negative="fog")
        alone = call("CIDMEncodePrompt", **given, text="a <rex:0.8> in the snow")[0]
    found = sample(painter, positive, negative)
    for file in (state, exported):
        theirs, their_clip = comfy.sd.load_lora_for_models(model, clip, file, 0.8, 0.8)
        wanted = sample(theirs, encoded(their_clip, "a ohwx cat in the snow"), encoded(their_clip, "fog"))
        assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    equal(alone[0][0], positive[0][0])
    equal(alone[0][1]["pooled_output"], positive[0][1]["pooled_output"])
    bare = sample(model, encoded(clip, "a ohwx cat in the snow"), encoded(clip, "fog"))
    assert torch.isfinite(found).all() and float((found - bare).abs().max()) > 1e-2 * float(bare.abs().max())


def the_picture_of_flux_is_that_of_the_hosts_own_loader():
    layer = "lora_te1_text_model_encoder_layers_{}_{}".format
    texts = {layer(0, "self_attn_q_proj"): POOLED, layer(1, "mlp_fc1"): 64}
    check_picture("Flux", model_of("Flux"), flux_clip(), lora_file("Flux", SPELLINGS["kohya"]), texts)


def the_picture_of_stable_diffusion_3_is_that_of_the_hosts_own_loader():
    state = lora_file("SD3", SPELLINGS["kohya"])
    state = {key: value for key, value in state.items() if "context_embedder" not in key and "y_embedder" not in key}
    texts = {f"lora_te{i + 1}_text_model_encoder_layers_{i}_self_attn_q_proj": POOLED for i in (0, 1)}
    check_picture("SD3", built("SD3", WIDE_SD3), sd3_clip(), state, texts)


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
