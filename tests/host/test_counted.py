"""The graphs that docs/beside_packs.md counts and that are no templates do their job: here with Doodle, its concepts and its drawings."""

import json
import shutil
from pathlib import Path

import pytest
from graphs import node
from PIL import Image
from thumbnails import SMALL, draw_photos

PACK = Path(__file__).resolve().parents[2]
GRAPHS = sorted((PACK / "tests" / "counted").glob("*.json"))
FEW = {"KSampler": {"steps": 2}, "TrainLoraNode": {"steps": 2, "training_dtype": "fp32", "lora_dtype": "fp32"}, "EmptyLatentImage": SMALL}


@pytest.fixture
def brought(server):
    """What the graphs ask of their user: LoRAs, a mask for each place, photos with captions."""
    loras, photos = server.folder / "models" / "loras", server.folder / "input" / "my_dog"
    loras.mkdir(exist_ok=True)
    draw_photos(photos, "dog")
    for photo in photos.glob("*.png"):
        photo.with_suffix(".txt").write_text("a photo of my dog")
    for i, concept in enumerate(("dog", "cat", "duck", "bear")):
        shutil.copy(PACK / "cidm_ops" / "doodle" / "ten" / f"{concept}.safetensors", loras)
        mask = Image.new("RGBA", (128, 128), "black")
        mask.paste((0, 0, 0, 0), (i * 32, 0, i * 32 + 32, 128))  # the mask editor leaves a place clear
        mask.save(server.folder / "input" / f"mask{i + 1}.png")


@pytest.mark.parametrize("file", GRAPHS, ids=lambda file: file.stem)
def test_a_graph_that_is_counted_paints(server, brought, file):
    prompt = json.loads(file.read_text(encoding="utf-8"))
    known = server.get("/object_info")
    if missing := {step["class_type"] for step in prompt.values()} - known.keys():
        pytest.skip(f"this host has no {', '.join(sorted(missing))}")
    for step in prompt.values():
        step["inputs"] |= FEW.get(step["class_type"], {})
    prompt["base"] = node("CIDMDoodleModel")
    if "bank" in prompt:
        prompt["bank"] = node("CIDMDoodleBank", name="my_concepts")
    saved = server.run(prompt)["save"]["images"][0]
    low, high = Image.open(server.folder / "output" / saved["subfolder"] / saved["filename"]).convert("L").getextrema()
    assert low < high
