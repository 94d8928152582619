"""The nodes of regions in a running ComfyUI: two ways to sample, and what bad input says."""

import json

import numpy as np
import pytest
from graphs import node
from PIL import Image

HALVES = [{"text": "a <dog> in the snow", "box": [0, 0, 0.5, 1]}, {"text": "a <cat> in the snow", "box": [0.5, 0, 1, 1]}]


def painting(boxes=HALVES, text="in the snow", regions=("3", 0), **more):
    """A prompt that paints boxes in three steps; ``more`` nodes by their key."""
    inputs = {"model": ["1", 0], "clip": ["1", 1], "bank": ["2", 0], "regions": list(regions), "text": text}
    return {
        "1": node("CIDMDoodleModel"),
        "2": node("CIDMDoodleBank", name="doodle_ten"),
        "3": node("CIDMRegionBoxes", boxes=boxes if isinstance(boxes, str) else json.dumps(boxes)),
        "4": node("CIDMPaintRegions", **inputs, preset="fast", mode="exact", strength=1.0),
        "5": node("CLIPTextEncode", clip=["1", 1], text=""),
        "6": node("EmptyLatentImage", width=256, height=128, batch_size=1),
        "7": node(
            "KSampler",
            **{"model": ["4", 0], "positive": ["4", 1], "negative": ["5", 0], "latent_image": ["6", 0], "seed": 1, "steps": 3},
            **{"cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
        ),
        "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="regions"),
    } | more


def picture(server, outputs, key="9"):
    (image,) = outputs[key]["images"]
    return np.asarray(Image.open(server.folder / "output" / image["subfolder"] / image["filename"]))


def test_one_node_paints_what_several_do(server):
    """Paint with Concepts: with regions what Paint in Regions paints, without them what Encode Prompt and Apply Concepts do."""
    parts, said = {"model": ["1", 0], "clip": ["1", 1], "bank": ["2", 0]}, "a <dog> on the beach"
    how = {"mode": "exact", "strength": 0.8}
    prompt = painting()
    prompt["4"]["inputs"] |= {"strength": 0.8}
    prompt |= {
        "10": node("CIDMPaint", **parts, prompt="in the snow", negative="", regions=["3", 0], **how),
        "20": node("CIDMPaint", **parts, prompt=said, negative="", **how),
        "30": node("CIDMEncodePrompt", clip=["1", 1], bank=["2", 0], text=said),
        "31": node("CIDMAggregate", **parts, text=["30", 1], **how),
    }
    sides = {"1": (["10", 0], ["10", 1], ["10", 2]), "2": (["20", 0], ["20", 1], ["20", 2]), "3": (["31", 0], ["30", 0], ["5", 0])}
    for key, (model, positive, negative) in sides.items():
        sampler = prompt["7"]["inputs"] | {"model": model, "positive": positive, "negative": negative}
        prompt |= {
            f"4{key}": node("KSampler", **sampler),
            f"5{key}": node("VAEDecode", samples=[f"4{key}", 0], vae=["1", 2]),
            f"6{key}": node("SaveImage", images=[f"5{key}", 0], filename_prefix="one_node"),
        }
    outputs = server.run(prompt)
    assert np.array_equal(picture(server, outputs), picture(server, outputs, "61"))
    assert np.array_equal(picture(server, outputs, "62"), picture(server, outputs, "63"))
    assert outputs["20"]["text"] == ["<dog> 0.80"] and outputs["10"]["text"] == outputs["4"]["text"]


@pytest.mark.parametrize("preset", ["fast", "paper", "auto"])
def test_the_guider_paints_what_the_sampler_does(server, preset):
    prompt = painting()
    prompt["4"]["inputs"]["preset"] = preset
    guided = {k: v for k, v in prompt["4"]["inputs"].items()} | {"negative": ["5", 0], "cfg": 3.0}
    prompt |= {
        "10": node("CIDMRegionGuider", **guided),
        "11": node("RandomNoise", noise_seed=1),
        "12": node("KSamplerSelect", sampler_name="euler"),
        "13": node("BasicScheduler", model=["1", 0], scheduler="normal", steps=3, denoise=1.0),
        "14": node(
            "SamplerCustomAdvanced",
            **{"noise": ["11", 0], "guider": ["10", 0], "sampler": ["12", 0], "sigmas": ["13", 0], "latent_image": ["6", 0]},
        ),
        "15": node("VAEDecode", samples=["14", 0], vae=["1", 2]),
        "16": node("SaveImage", images=["15", 0], filename_prefix="guided"),
    }
    outputs = server.run(prompt)
    first = picture(server, outputs)
    assert first.shape == (128, 256, 3) and np.array_equal(first, picture(server, outputs, "16"))
    assert "region 1: <dog> 1.00" in outputs["4"]["text"][0] and "elsewhere: no concept" in outputs["10"]["text"][0]


def test_twenty_regions_and_overlaps_of_equals_are_painted(server):
    boxes = [{"text": f"a {'<dog>' if i % 2 else '<cat>'}", "box": [i / 40, 0, i / 40 + 0.5, 1]} for i in range(20)]
    assert picture(server, server.run(painting(boxes))).shape == (128, 256, 3)


def test_regions_that_are_tiny_empty_or_hidden_are_told(server):
    tiny = [*HALVES, {"text": "a <duck>", "box": [0.9, 0.9, 0.91, 0.91]}, {"text": "a <bear>", "box": [0, 0, 1, 1], "priority": -1}]
    said = server.run(painting(tiny))["4"]["text"][0]
    assert "region 3 is smaller than a cell of the coarsest layers" in said
    assert "region 4 is hidden by regions of higher priority" in said
    empty = painting(
        regions=("20", 0),
        **{
            "20": node("CIDMRegion", text="a <dog>", left=0.0, top=0.0, right=1.0, bottom=1.0, strength=1.0, priority=0, feather=0.0),
            "21": node("SolidMask", value=0.0, width=64, height=64),
        },
    )
    empty["20"]["inputs"]["mask"] = ["21", 0]
    assert "region 1 is empty" in server.run(empty)["4"]["text"][0]
    assert "there are no regions" in server.run(painting([]))["4"]["text"][0]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ("[", "JSON"),
        ([{"text": "a <dog>", "box": [0, 0, 1.5, 1]}], "1.5"),
        ([{"text": "a <unicorn>", "box": [0, 0, 1, 1]}], "no concept has the word <unicorn>"),
    ],
)
def test_boxes_that_cannot_be_are_one_clear_error(server, boxes, expected):
    assert expected in server.error(painting(boxes))


def test_what_cannot_be_found_or_blended_is_one_clear_error(server):
    sought = node("CIDMFindRegions", texts="a dog in the snow", until_percent=0.1, strength=1.0, feather=0.0)
    assert "has none: write <name> into it" in server.error(painting(regions=("20", 0), **{"20": sought}))
    noise = node(
        "CIDMRegionNoise",
        **{"alpha": 0.1, "start_percent": 0.5, "end_percent": 0.2, "overlap": "mean", "feather": 0.0, "bootstrap_percent": 0.0},
        features=False,
    )
    prompt = painting(**{"20": noise})
    prompt["4"]["inputs"]["noise"] = ["20", 0]
    assert "start_percent 0.5 is after end_percent 0.2" in server.error(prompt)
    batch = painting(
        regions=("20", 0),
        **{
            "20": node("CIDMRegion", text="a <dog>", left=0.0, top=0.0, right=1.0, bottom=1.0, strength=1.0, priority=0, feather=0.0),
            "21": node("SolidMask", value=1.0, width=64, height=64),
            "22": node("MaskToImage", mask=["21", 0]),
            "23": node("RepeatImageBatch", image=["22", 0], amount=2),
            "24": node("ImageToMask", image=["23", 0], channel="red"),
        },
    )
    batch["20"]["inputs"]["mask"] = ["24", 0]
    assert "a batch of 2 masks" in server.error(batch)


def places(boxes):
    """A prompt that shows regions: one from a box, those of a text, and a grid."""
    sides = {"left": 0.0, "top": 0.0, "right": 0.5, "bottom": 1.0}
    return {
        "1": node("CIDMRegion", text="first", strength=1.0, priority=0, feather=0.1, **sides),
        "2": node("CIDMRegionBoxes", boxes=boxes, regions=["1", 0]),
        "3": node("CIDMRegionGrid", texts="last", columns=1, rows=1, strength=0.5, feather=0.0, regions=["2", 0]),
        "4": node("CIDMRegionPreview", regions=["3", 0]),
    }


def test_boxes_are_regions_from_their_text_alone(server):
    twenty = [{"text": f"<dog{i}>", "box": [0, i / 20, 1, (i + 1) / 20]} for i in range(20)]
    for boxes in ([], twenty[:1], twenty):
        shown = server.run(places(json.dumps(boxes)))["4"]
        texts = ["first", *(box["text"] for box in boxes), "last"]
        assert shown["text"][0] == "\n".join(f"region {u}: {text}" for u, text in enumerate(texts, 1)) and shown["images"]


def test_boxes_that_cannot_be_are_named(server):
    good, bad = {"text": "a", "box": [0, 0, 1, 1]}, {"text": "a", "box": [0, 0, 1.5, 1]}
    assert "box 2" in (said := server.error(places(json.dumps([good, bad])))) and "right 1.5" in said
    assert "no JSON" in server.error(places("a dog"))
