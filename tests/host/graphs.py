"""Graphs as people make them, for a running ComfyUI: Doodle learns, speaks and paints, and what they bring of their own."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

SAVED = Path(__file__).parent / "saved"  # workflows as people saved them from the first version on
ATTENTION = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_{}"
PARTS = {"UNETLoader": 0, "LoraLoaderModelOnly": 0, "CLIPLoader": 1, "VAELoader": 2}  # of a base that is loaded by several nodes


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


# What ships, in place of what loads a file of the user: with the same outputs.
SHIPPED = {
    "CheckpointLoaderSimple": node("CIDMDoodleModel"),
    "CIDMLoadBase": node("CIDMLoadBase", base="Doodle (comes with CIDM)"),
    "CLIPVisionLoader": node("CIDMDoodleTowers"),
}


def on_doodle(prompt):
    """A workflow whose base is loaded by parts, with Doodle in their place: by its output that each of them is."""
    parts = {number: PARTS[step["class_type"]] for number, step in prompt.items() if step["class_type"] in PARTS}
    if not parts:
        return prompt
    kept = {number: step for number, step in prompt.items() if number not in parts}
    for step in kept.values():
        for name, value in step["inputs"].items():
            if isinstance(value, list) and value[0] in parts:
                step["inputs"][name] = ["doodle", parts[value[0]]]
    return {"doodle": node("CIDMDoodleModel")} | kept


def learn(bank, steps=2, name="dog", class_word="dog", images=("3", 0), captions=("3", 1), seed=0):
    """A prompt that learns one concept of Doodle."""
    return {
        "1": node("CIDMDoodleModel"),
        "2": node("CIDMOpenBank", name=bank),
        "3": node("CIDMDoodleConcept", concept="dog", count=2, variation=0),
        "4": node(
            "CIDMTrainConcept",
            **{"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "bank": ["2", 0], "images": list(images), "captions": list(captions)},
            **{"name": name, "class_word": class_word, "kind": "thing", "steps": steps, "seed": seed, "batch_size": 1, "rank": 4},
            **{"learning_rate": 1e-3, "token_learning_rate": 2e-3, "consolidation": 0.1, "token_norm_stop": 0.55},
        ),
        "5": node("PreviewAny", source=["4", 3]),
    }


def speak(bank, text):
    """A prompt that encodes a text with a bank and aggregates for it."""
    return {
        "1": node("CIDMDoodleModel"),
        "2": node("CIDMOpenBank", name=bank),
        "3": node("CIDMEncodePrompt", clip=["1", 1], bank=["2", 0], text=text),
        "4": node("CIDMAggregate", model=["1", 0], clip=["1", 1], bank=["2", 0], text=["3", 1], mode="exact", strength=1.0),
        "5": node("PreviewAny", source=["4", 1]),
    }


def paint(bank, text, lora=None):
    """A prompt that paints with a bank, or with the host's own LoRA loader."""
    prompt = speak(bank, text) if lora is None else {"1": node("CIDMDoodleModel")}
    if lora is not None:
        prompt["4"] = node("LoraLoaderModelOnly", model=["1", 0], lora_name=lora, strength_model=1.0)
        prompt["3"] = node("CLIPTextEncode", clip=["1", 1], text=text)
    return prompt | {
        "6": node("CLIPTextEncode", clip=["1", 1], text=""),
        "7": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "8": node(
            "KSampler",
            **{"model": ["4", 0], "positive": ["3", 0], "negative": ["6", 0], "latent_image": ["7", 0], "seed": 1, "steps": 4, "cfg": 2.0},
            **{"sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
        ),
        "9": node("VAEDecode", samples=["8", 0], vae=["1", 2]),
        "10": node("SaveImage", images=["9", 0], filename_prefix="painted"),
    }


def load(folder):
    return {"1": node("CIDMLoadConceptImages", folder=str(folder), size=128), "2": node("PreviewImage", images=["1", 0])}


def photos(folder, captions=("a dog on the grass", "a dog at home")):
    """A folder of large photos with captions, one of them lying on its side as cameras leave them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, caption in enumerate(captions):
        pixels = np.kron(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8), np.ones((50, 50, 1), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if i else 1
        Image.fromarray(pixels).save(folder / f"photo{i}.jpg", exif=exif)
        (folder / f"photo{i}.txt").write_text(caption)
    return folder


def community_lora(server, file="loras/my_lora.safetensors", **more):
    """A LoRA of Doodle as kohya's tools name it, alpha half the rank, in the server's folder; and what it adds to one layer."""
    generator, state = torch.Generator().manual_seed(0), {}
    for module, out, read in ((ATTENTION.format("to_k"), 128, 160), (ATTENTION.format("to_v"), 128, 160)):
        state[f"{module}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
        state[f"{module}.lora_down.weight"] = torch.randn(4, read, generator=generator)
        state[f"{module}.alpha"] = torch.tensor(2.0)
    place = server.folder / "models" / file
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(state | more, place)
    module = ATTENTION.format("to_k")
    return place, state[f"{module}.lora_up.weight"] @ state[f"{module}.lora_down.weight"] / 2
