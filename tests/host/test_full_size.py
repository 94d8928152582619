"""A full-size Stable Diffusion 1.5, with random weights in the original single-file layout, in a running ComfyUI."""

import os

import pytest
from test_server import node, photos

from cidm_ops.bank.concept import load_concept

pytestmark = pytest.mark.slow


def test_two_concepts_on_a_full_size_checkpoint(server):
    files = pytest.importorskip("cidm_ops.measure.bench.checkpoints", reason="the full-size checkpoint is made with diffusers")
    checkpoints = server.folder / "models" / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    file = files.write_checkpoint(checkpoints / "random.safetensors")
    try:
        for name in ("dog", "cat"):
            photos(server.folder / "input" / f"full-{name}", [f"a {name} on the grass"])
            server.run(
                {
                    "1": node("CheckpointLoaderSimple", ckpt_name=file.name),
                    "2": node("CIDMOpenBank", name="full"),
                    "3": node("CIDMLoadConceptImages", folder=f"full-{name}", size=256),
                    "4": node(
                        "CIDMTrainConcept",
                        **{
                            "model": ["1", 0],
                            "clip": ["1", 1],
                            "vae": ["1", 2],
                            "bank": ["2", 0],
                            "images": ["3", 0],
                            "captions": ["3", 1],
                        },
                        **{"name": name, "class_word": name, "kind": "thing", "steps": 2, "seed": 0, "batch_size": 1, "rank": 4},
                        **{"learning_rate": 1e-4, "token_learning_rate": 1e-3, "consolidation": 0.1, "token_norm_stop": 0.55},
                    ),
                    "5": node("PreviewAny", source=["4", 3]),
                },
                3600,
            )
        for task, name in enumerate(("dog", "cat"), 1):
            learned = server.bank("full") / f"{name}.safetensors"
            concept = load_concept(learned)
            assert learned.stat().st_size <= 2_000_000
            assert concept.architecture == "sd1-16x768" and concept.task == task
            assert len(concept.factors) == 64
            assert sum(f.up.numel() + f.down.numel() for f in concept.factors.values()) == 397_824
            assert concept.tokens["clip_l"].shape == (2, 16, 768)
            assert all(f.up.abs().max() > 0 for f in concept.factors.values())
        (server.folder / "models" / "loras").mkdir(exist_ok=True)
        os.link(server.bank("full") / "dog.safetensors", server.folder / "models" / "loras" / "dog.safetensors")
        before = len(server.log.read_text())
        server.run(
            {
                "1": node("CheckpointLoaderSimple", ckpt_name=file.name),
                "2": node("LoraLoaderModelOnly", model=["1", 0], lora_name="dog.safetensors", strength_model=1.0),
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
        assert "lora key not loaded" not in server.log.read_text()[before:]
    finally:
        file.unlink()
