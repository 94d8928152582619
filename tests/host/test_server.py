"""The pack in a running ComfyUI: its nodes, their translations, and its workflows."""

import json
from pathlib import Path

import pytest
from graphs import SAVED, SHIPPED, community_lora, node, on_doodle, photos
from PIL import Image

PACK = Path(__file__).resolve().parents[2]
ONCE = ("learn_two_doodle_concepts", "learn_from_photos_sd15", "import_a_lora", "score_a_concept", "scene_bedroom")  # others have tests
WORKFLOWS = [*sorted((PACK / "workflows" / "api").glob("*.json")), *(SAVED / f"{name}.json" for name in ONCE)]
NODES = [
    "Aggregate", "AggregateBatch", "AggregationSettings", "BankTable", "CompressBank", "ConceptCard", "ConceptReferences",
    "ContrastWords",
    "DatasetFromFolder", "DatasetFromImages", "Diversity", "DoodleBank", "DoodleConcept", "DoodleModel", "DoodleTowers", "EditPlace",
    "EncodePrompt", "ExpandBank", "ExportConcept", "FindRegions", "FisherDivergence", "Forgetting", "ImageAlignment", "ImportConcept",
    "Infusion", "InspectFile", "InvertPicture", "KeepPictures", "LoadBase", "LoadConceptImages", "ManageBank", "OpenBank", "OverlapMap",
    "Paint", "PaintRegions", "PickBest", "Presence", "PreviewDataset", "PutBack", "ReadWish", "ReferenceAttention", "References",
    "ReferencesFromFolder", "Region", "RegionBoxes", "RegionGrid", "RegionGuider", "RegionNoise", "RegionPreview", "RoutingPreview",
    "RoutingTable", "ScoreReport", "SiftPictures", "TextAlignment", "TrainConcept", "TrainInfusion", "TrainTogether", "TrainingSettings",
    "TwoTermGuider", "Wasserstein", "Weave",
]  # fmt: skip

STEPPED = ("CIDMContrastWords", "CIDMFisherDivergence", "CIDMTrainConcept", "CIDMTrainInfusion", "CIDMTrainTogether", "KSampler")


def test_the_pack_loads(server):
    log = server.log.read_text()
    assert "IMPORT FAILED" not in log
    assert server.pack.name in log
    info = server.get("/object_info")
    assert sorted(name for name in info if name.startswith("CIDM")) == [f"CIDM{name}" for name in NODES]


@pytest.mark.parametrize("name", [f"CIDM{name}" for name in NODES])
def test_every_node_explains_itself(server, name):
    info = server.get(f"/object_info/{name}")[name]
    assert info["category"].split("/")[0] == "CIDM" and info["description"] and info["display_name"]
    for group in ("required", "optional"):
        for key, (_, *options) in info["input"].get(group, {}).items():
            assert options and options[0].get("tooltip"), f"input {key} has no tooltip"
    assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"])


def texts_of(info):
    """What a person reads of a node, as a translation has it."""
    inputs = info["input"].get("required", {}) | info["input"].get("optional", {})
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {name: {"name": name, "tooltip": options[0]["tooltip"]} for name, (_, *options) in inputs.items()},
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    }


def test_every_translation_has_every_text_as_it_is_now(server):
    """``translated.json`` has the English texts that were translated: who changes one changes its translations, and then this file."""
    translated = json.loads((Path(__file__).parent / "translated.json").read_text(encoding="utf-8"))
    now = {f"CIDM{name}": texts_of(server.get(f"/object_info/CIDM{name}")[f"CIDM{name}"]) for name in NODES}
    assert {kind: texts for kind, texts in now.items() if translated.get(kind) != texts} == {} and translated.keys() == now.keys()
    served = server.get("/i18n")
    assert {language.name for language in (PACK / "locales").iterdir()} == {"zh", "ja", "ko", "de", "fr", "es", "ru"}
    for language in (PACK / "locales").iterdir():
        texts = served[language.name]["nodeDefs"]
        for kind, english in now.items():
            own = texts[kind]
            assert own["display_name"] and own["description"]
            for part in ("inputs", "outputs"):
                assert own[part].keys() == english[part].keys()
                assert all(text["name"] and text["tooltip"] for text in own[part].values())


def test_every_node_has_a_template_and_words_to_be_found_by(server):
    kinds = {step["class_type"] for file in WORKFLOWS if file.parent.name == "api" for step in json.loads(file.read_text("utf-8")).values()}
    assert {f"CIDM{name}" for name in NODES} <= kinds
    for name in NODES:
        info = server.get(f"/object_info/CIDM{name}")[f"CIDM{name}"]
        if "search_aliases" in info:  # not at the floor
            assert len(info["search_aliases"]) > 2, name
    assert all(file.with_suffix(".jpg").is_file() for file in (PACK / "workflows").glob("*.json"))


def brought(server, text):
    """A workflow with what its user brings: Doodle as checkpoint and as what sees, photos, a LoRA, a bank; and few steps."""
    inputs = server.folder / "input"
    for folder in (
        "my_dog",
        "my_cat",
        "my_photos/dog",
        "my_photos/cat",
        "one_by_one",
    ):  # another test may have filled one
        if not (inputs / folder).exists():
            photos(inputs / folder)
    if "CIDMTrainConcept" not in text:  # the bank of the user has Doodle's concepts
        text = text.replace("my_dog", "dog").replace("my_cat", "cat").replace("my concepts", "my_concepts")
    prompt = on_doodle(json.loads(text))
    for step in prompt.values():
        given, kind = step["inputs"], step["class_type"]
        if kind in SHIPPED:
            step.update(SHIPPED[kind])
        elif kind == "CIDMOpenBank" and given["name"] == "my_concepts":
            step.update(node("CIDMDoodleBank", name="my_concepts"))
        elif kind in STEPPED:
            given["steps"] = 3
        elif kind == "CIDMLoadConceptImages":
            given["size"] = 128
        elif kind == "LoadImage":
            given["image"] = "one_by_one/photo0.jpg"
        elif kind == "CIDMImportConcept":
            community_lora(server, given["file"])
        elif kind == "EmptyLatentImage" and isinstance(given["width"], int):  # else the base gives it
            given |= {"width": 128, "height": 128}
    return prompt


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda f: f.stem)
def test_every_workflow_runs_to_pictures(server, file):
    outputs = server.run(brought(server, file.read_text(encoding="utf-8")))
    shown = [image for output in outputs.values() for image in output.get("images", [])]
    assert shown
    for image in shown:
        place = server.folder / {"output": "output", "temp": "temp/temp"}[image["type"]] / image["subfolder"] / image["filename"]
        assert min(Image.open(place).size) >= 100
