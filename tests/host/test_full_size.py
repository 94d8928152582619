"""Full-size Stable Diffusion 1.5 and SDXL, with random weights in the original single-file layout, in a running ComfyUI."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graphs import node, photos
from safetensors.torch import load_file

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.concept_file import load_concept
from cidm_ops.lowrank import LowRank
from cidm_ops.models.sd import SD1, SDXL

PACK = Path(__file__).resolve().parents[2]
SETTINGS = {
    "mode": "corrected", "targets": "attention_ff", "groups": "block", "shared": 0.0, "accumulate": 1, "alpha": 0.0, "weight_decay": 0.01,
    "noise_offset": 0.01, "min_snr": 5.0, "dropout": 0.0, "checkpointing": False, "shuffle": False, "templates": "",
    "lr_text": 0.0, "attention": 0.0, "prior": 0.0, "prior_pictures": 2,
    "precision": "auto", "memory": "auto", "existing": "replace", "preview_every": 20, "preview_prompt": "a photo of <dog>",
}  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture
def checkpoint(server, request):
    """A random checkpoint of the family in the host's folder, made in a process that gives its memory back."""
    pytest.importorskip("diffusers", reason="the full-size checkpoint is made with diffusers")
    file = server.folder / "models" / "checkpoints" / f"random-{request.param}.safetensors"  # the host keeps what it loaded by the name
    file.parent.mkdir(exist_ok=True)
    make = f"from cidm_ops.benchmarks.speed.checkpoints import *; write_checkpoint(Path({str(file)!r}), {request.param})"
    subprocess.run([sys.executable, "-c", make], cwd=PACK, check=True)
    yield file
    file.unlink()


def learning(server, file, name, **settings):
    """Two steps at 256 pixels."""
    pictures = server.folder / "input" / f"full-{name}"
    if not pictures.exists():
        photos(pictures, [f"a {name} on the grass"])
    return {
        "1": node("CIDMLoadBase", base=file.name),
        "2": node("CIDMOpenBank", name=f"full-{settings['groups']}"),
        "3": node("CIDMLoadConceptImages", folder=pictures.name, size=256),
        "4": node(
            "CIDMTrainConcept",
            **{"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "bank": ["2", 0], "images": ["3", 0], "captions": ["3", 1]},
            **{"name": name, "class_word": name, "kind": "thing", "steps": 2, "seed": 0, "batch_size": 1, "rank": 4},
            **{"learning_rate": 1e-4, "token_learning_rate": 1e-3, "consolidation": 0.1, "token_norm_stop": 9.0, "settings": ["6", 0]},
        ),
        "5": node("PreviewAny", source=["4", 3]),
        "6": node("CIDMTrainingSettings", **(SETTINGS | {"targets": "cross_attention", "preview_every": 0} | settings)),
    }


def paint_with_core(server, file, concept):
    """Core's own LoRA loader takes the concept; returns what it said."""
    (server.folder / "models" / "loras").mkdir(exist_ok=True)
    os.link(concept, server.folder / "models" / "loras" / "concept.safetensors")
    before = len(server.log.read_text())
    server.run(
        {
            "1": node("CheckpointLoaderSimple", ckpt_name=file.name),
            "2": node("LoraLoaderModelOnly", model=["1", 0], lora_name="concept.safetensors", strength_model=1.0),
            "3": node("CLIPTextEncode", clip=["1", 1], text="a dog"),
            "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "5": node(
                "KSampler",
                **{"model": ["2", 0], "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 1, "steps": 1},
                **{"cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
            ),
            "6": node("SaveLatent", samples=["5", 0], filename_prefix="full"),
        },
        3600,
    )
    (server.folder / "models" / "loras" / "concept.safetensors").unlink()
    return server.log.read_text()[before:]


def random_concept(name, unet, widths):
    """A concept of rank 4 on all cross-attention of a U-Net of this configuration, with two words."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    with init_empty_weights():
        layers = UNet2DConditionModel(**unet).named_modules()
        shapes = {n: m.weight.shape for n, m in layers if ".attn2.to_" in n and hasattr(m, "weight")}
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    factors = {
        n: LowRank(0.01 * torch.randn(out, 4, generator=generator), torch.randn(4, inn, generator=generator))
        for n, (out, inn) in shapes.items()
    }
    count = len(shapes) // 4
    tokens = {encoder: 0.02 * torch.randn(2, count, width, generator=generator) for encoder, width in widths.items()}
    return Concept(
        name=name,
        class_word="dog",
        words=(f"<{name}.1>", f"<{name}.2>"),
        factors=factors,
        tokens=tokens,
        architecture=f"{'sd1' if count == 16 else 'sdxl'}-{count}x{sum(widths.values())}",
    )


@pytest.mark.parametrize(
    ("checkpoint", "family", "widths"),
    [("SD1", SD1, {"clip_l": 768}), ("SDXL", SDXL, {"clip_l": 768, "clip_g": 1280})],
    indirect=["checkpoint"],
)
def test_regions_found_and_drawn(server, checkpoint, family, widths):
    own = f"regions-{'-'.join(widths)}"
    bank = Bank(server.bank(own))
    for name in ("rex", "tom"):
        bank = bank.add(random_concept(name, family.diffusers.model, widths))
    sought = "a <rex> and a cat in the snow\na dog and a <tom> in the snow"
    sides = {"model": ["1", 0], "clip": ["1", 1], "bank": ["2", 0], "text": "a dog and a cat in the snow", "mode": "exact", "strength": 1.0}
    prompt = {
        "1": node("CheckpointLoaderSimple", ckpt_name=checkpoint.name),
        "2": node("CIDMOpenBank", name=own),
        "3": node("CIDMRegionGrid", texts="a <rex> in the snow\na <tom> in the snow", columns=2, rows=1, strength=1.0, feather=0.1),
        "4": node("CIDMFindRegions", texts=sought, until_percent=0.4, strength=1.0, feather=0.0),
        "5": node("CLIPTextEncode", clip=["1", 1], text=""),
        "6": node("EmptyLatentImage", width=256, height=128, batch_size=1),
    }
    for key, (regions, preset) in {"7": ("3", "fast"), "8": ("3", "paper"), "9": ("4", "auto")}.items():
        prompt[key] = node("CIDMPaintRegions", **sides, regions=[regions, 0], preset=preset)
        prompt[key + "1"] = node(
            "KSampler",
            **{"model": [key, 0], "positive": [key, 1], "negative": ["5", 0], "latent_image": ["6", 0], "seed": 1, "steps": 3},
            **{"cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
        )
        prompt[key + "2"] = node("SaveLatent", samples=[key + "1", 0], filename_prefix=f"regions-{key}")
    outputs = server.run(prompt, 3600)
    latents = [load_file(saved(server, outputs[key + "2"]["latents"][0]))["latent_tensor"] for key in "789"]
    assert all(latent.shape == (1, 4, 16, 32) and latent.isfinite().all() for latent in latents)
    assert all(float((latent - latents[0]).abs().max()) > 1e-3 for latent in latents[1:])
    assert "region 2: <tom> 1.00" in outputs["7"]["text"][0]


def saved(server, entry):
    return server.folder / "output" / entry["subfolder"] / entry["filename"]


@pytest.mark.parametrize("checkpoint", ["SD1"], indirect=True)
def test_two_concepts_on_stable_diffusion_15(server, checkpoint):
    for task, name in enumerate(("dog", "cat"), 1):
        server.run(learning(server, checkpoint, name, groups="block"), 3600)
        file = server.bank("full-block") / f"{name}.safetensors"
        concept = load_concept(file)
        assert file.stat().st_size <= 2_000_000
        assert concept.architecture == "sd1-16x768" and concept.task == task
        assert len(concept.factors) == 64
        assert sum(f.up.numel() + f.down.numel() for f in concept.factors.values()) == 397_824
        assert concept.tokens["clip_l"].shape == (2, 16, 768)
        assert all(f.up.abs().max() > 0 for f in concept.factors.values())
    assert "lora key not loaded" not in paint_with_core(server, checkpoint, file)


@pytest.mark.parametrize("checkpoint", ["SDXL"], indirect=True)
def test_a_concept_on_sdxl(server, checkpoint):
    for groups, rows in (("block", 11), ("layer", 70)):
        server.run(learning(server, checkpoint, "dog", groups=groups, checkpointing=True), 3600)
        file = server.bank(f"full-{groups}") / "dog.safetensors"
        concept = load_concept(file)
        assert len(concept.factors) == 280
        assert sum(f.up.numel() + f.down.numel() for f in concept.factors.values()) == 3_143_680
        assert {e: tuple(t.shape) for e, t in concept.tokens.items()} == {"clip_l": (2, rows, 768), "clip_g": (2, rows, 1280)}
        assert all(f.up.abs().max() > 0 for f in concept.factors.values())
    assert sum(t[0].numel() for t in concept.tokens.values()) == 143_360
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())[1]) / 2**20
    print(f"peak memory {peak:.1f} GB")
    assert peak < 24
    assert "lora key not loaded" not in paint_with_core(server, checkpoint, file)
