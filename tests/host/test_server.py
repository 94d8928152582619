"""The pack in a running ComfyUI: its nodes, its workflows, Cancel, and what bad input says."""

import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cidm_ops.bank.concept_file import load_concept, save_concept

PACK = Path(__file__).resolve().parents[2]
SAVED = Path(__file__).parent / "saved"  # workflows as people saved them from the first version on
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
ATTENTION = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_{}"

SETTINGS = {
    "mode": "corrected", "targets": "attention_ff", "groups": "block", "shared": 0.0, "accumulate": 1, "alpha": 0.0, "weight_decay": 0.01,
    "noise_offset": 0.01, "min_snr": 5.0, "dropout": 0.0, "checkpointing": False, "shuffle": False, "templates": "",
    "lr_text": 0.0, "attention": 0.0, "prior": 0.0, "prior_pictures": 2,
    "precision": "auto", "memory": "auto", "existing": "replace", "preview_every": 20, "preview_prompt": "a photo of <dog>",
}  # fmt: skip


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


# What ships, in place of what loads a file of the user: with the same outputs.
SHIPPED = {
    "CheckpointLoaderSimple": node("CIDMDoodleModel"),
    "CIDMLoadBase": node("CIDMLoadBase", base="Doodle (comes with CIDM)"),
    "CLIPVisionLoader": node("CIDMDoodleTowers"),
}


PARTS = {"UNETLoader": 0, "LoraLoaderModelOnly": 0, "CLIPLoader": 1, "VAELoader": 2}  # of a base that is loaded by several nodes


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
    for module, out, read in ((ATTENTION.format("to_k"), 128, 128), (ATTENTION.format("to_v"), 128, 128)):
        state[f"{module}.lora_up.weight"] = torch.randn(out, 4, generator=generator)
        state[f"{module}.lora_down.weight"] = torch.randn(4, read, generator=generator)
        state[f"{module}.alpha"] = torch.tensor(2.0)
    place = server.folder / "models" / file
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(state | more, place)
    module = ATTENTION.format("to_k")
    return place, state[f"{module}.lora_up.weight"] @ state[f"{module}.lora_down.weight"] / 2


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
    assert {node: texts for node, texts in now.items() if translated.get(node) != texts} == {} and translated.keys() == now.keys()
    served = server.get("/i18n")
    assert {language.name for language in (PACK / "locales").iterdir()} == {"zh", "ja", "ko", "de", "fr", "es", "ru"}
    for language in (PACK / "locales").iterdir():
        texts = served[language.name]["nodeDefs"]
        for node, english in now.items():
            own = texts[node]
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


def test_a_task_queued_again_is_not_learned_again(server):
    server.run(learn("again"))
    file = server.bank("again") / "dog.safetensors"
    first = file.stat().st_mtime_ns
    server.run(learn("again"))
    assert file.stat().st_mtime_ns == first
    server.run(learn("again", seed=1))
    assert file.stat().st_mtime_ns > first and load_concept(file).task == 1


def test_a_new_concept_is_seen_by_the_next_prompt(server):
    assert "no concept has the word <dog>" in server.error(speak("late", "a <dog>"))
    server.run(learn("late"))
    shown = server.run(speak("late", "a <dog>"))
    assert "dog" in shown["5"]["text"][0] and shown["4"]["text"] == ["<dog> 1.00"]


def test_cancel_leaves_the_bank_as_it_was(server):
    server.run(learn("cancelled"))
    file = server.bank("cancelled") / "dog.safetensors"
    before = file.read_bytes()
    running = server.queue(learn("cancelled", steps=100000))
    server.wait_for(lambda: server.get("/queue")["queue_running"], 30)
    time.sleep(4)
    server.post("/interrupt", {})
    entry = server.finished(running, 30)
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])
    assert file.read_bytes() == before and [f.name for f in file.parent.glob("*.safetensors")] == [file.name]
    server.run(speak("cancelled", "a <dog>"))


def test_the_workflow_is_cancelled_at_any_step_and_goes_on(server):
    """A saved workflow trains, is cancelled, trains on, plots and paints; the end is that of a run that nobody stopped."""

    def task(bank):
        prompt = json.loads((SAVED / "watch_a_training.json").read_text(encoding="utf-8"))
        for step in prompt.values():
            if step["class_type"] == "CIDMOpenBank":
                step["inputs"]["name"] = bank
            elif step["class_type"] in ("CIDMTrainConcept", "KSampler"):
                step["inputs"]["steps"] = 30 if step["class_type"] == "CIDMTrainConcept" else 2
        return prompt

    learned, state = (server.bank("halted") / place / "duck.safetensors" for place in ("", ".training"))
    began = time.monotonic()
    server.run(task("whole"))
    lasts, stops = time.monotonic() - began, 0
    while stops < 3 and not learned.exists():
        running = server.queue(task("halted"))
        server.wait_for(lambda: server.get("/queue")["queue_running"], 30)
        time.sleep(lasts * random.uniform(0.02, 0.2))
        server.post("/interrupt", {})
        server.finished(running, 60)
        stops += state.exists()
    assert stops, "it was never stopped in mid-run"
    outputs = server.run(task("halted"))
    whole, halted = (load_concept(server.bank(name) / "duck.safetensors") for name in ("whole", "halted"))
    assert whole.training["losses"] == halted.training["losses"] and len(halted.training["losses"]) == 30
    assert all((f.up == halted.factors[n].up).all() for n, f in whole.factors.items())
    assert not state.exists()
    kinds = {step["class_type"]: key for key, step in task("halted").items()}
    assert all(outputs[kinds[kind]]["images"] for kind in ("LossGraphNode", "SaveImage", "CIDMPreviewDataset"))


def test_a_dataset_is_fitted_shown_and_learned(server):
    photos(server.folder / "input" / "wide", ("a red dog on the grass", "a red dog at home"))
    prompt = learn("wide", images=("6", 0), captions=()) | {
        "6": node("CIDMDatasetFromFolder", folder="wide", size=128, fit="buckets", flip=False),
        "7": node("CIDMPreviewDataset", dataset=["6", 0], name="dog", class_word="dog", seed=0),
    }
    del prompt["4"]["inputs"]["captions"]
    outputs = server.run(prompt)
    assert outputs["7"]["images"] and "every caption says 'red'" in outputs["7"]["text"][0]
    assert load_concept(server.bank("wide") / "dog.safetensors").training["pictures"] == 2


def test_a_batch_from_the_graph_is_a_dataset(server):
    prompt = learn("batch", images=("6", 0)) | {
        "6": node("CIDMDatasetFromImages", images=["3", 0], captions=["3", 1], masks=["3", 2], size=128, fit="random", flip=False)
    }
    del prompt["4"]["inputs"]["captions"]
    server.run(prompt)
    assert load_concept(server.bank("batch") / "dog.safetensors").training["pictures"] == 2


def test_an_empty_folder_is_named(server):
    empty = server.folder / "input" / "empty"
    empty.mkdir(exist_ok=True)
    assert "no pictures in it" in server.error(load("empty"))
    assert "no such folder" in server.error(load(server.folder / "nowhere"))


def test_a_truncated_picture_is_named(server):
    folder = photos(server.folder / "input" / "truncated")
    file = folder / "photo1.jpg"
    file.write_bytes(file.read_bytes()[:2000])
    assert "photo1.jpg" in server.error(load("truncated"))


def test_a_caption_without_the_class_word_is_warned_of(server):
    photos(server.folder / "input" / "captions", ("a dog on the grass", "my best friend"))
    prompt = learn("captions", images=("6", 0), captions=("6", 1)) | {"6": node("CIDMLoadConceptImages", folder="captions", size=128)}
    text = server.run(prompt)["4"]["text"][0]
    assert "caption 2 ('my best friend')" in text and "'dog'" in text and "caption 1" not in text
    assert "my best friend" in server.log.read_text()


def test_an_unknown_word_lists_the_known_ones(server):
    server.run(learn("known"))
    said = server.error(speak("known", "a <dgo> on the beach"))
    assert "<dgo>" in said and "<dog>" in said


def test_wrong_captions_and_names_are_refused_before_learning(server):
    prompt = learn("refused")
    prompt["4"]["inputs"]["captions"] = "one\ntwo\nthree"
    assert "3 captions for 2 pictures" in server.error(prompt)
    assert "concept name" in server.error(learn("refused", name="my dog!"))
    assert "class word is empty" in server.error(learn("refused", class_word=" "))
    assert not server.bank("refused").exists()


def test_a_concept_of_another_architecture_is_refused(server):
    server.run(learn("other"))
    file = server.bank("other") / "dog.safetensors"
    concept = load_concept(file)
    save_concept(replace(concept, architecture="sd1-16x768"), file)
    for said in (server.error(speak("other", "a <dog>")), server.error(learn("other", name="cat"))):
        assert "learned on sd1-16x768" in said and "sd1-7x128" in said
    save_concept(replace(concept, fingerprint="0" * 12), file)
    assert "another checkpoint" in server.run(speak("other", "a <dog>"))["4"]["text"][0]


def test_a_damaged_file_is_named_and_the_rest_stays_usable(server):
    server.run(learn("damaged"))
    server.run(learn("damaged", name="cat"))
    file = server.bank("damaged") / "cat.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "cat.safetensors" in server.run(speak("damaged", "a <dog>"))["2"]["text"][0]
    assert "cat.safetensors" in server.error(speak("damaged", "a <cat>"))
    assert "cat.safetensors" in server.error(learn("damaged", name="duck"))


def take_in(bank, file, **inputs):
    """A prompt that imports a file into a bank."""
    given = dict(name="", triggers="", class_word="", rank=16, existing="refuse") | inputs
    return {
        "2": node("CIDMOpenBank", name=bank),
        "3": node("CIDMImportConcept", bank=["2", 0], file=file, **given),
        "4": node("PreviewAny", source=["3", 1]),
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


def picture(server, prompt):
    image = server.run(prompt)["10"]["images"][0]
    return np.asarray(Image.open(server.folder / "output" / image["subfolder"] / image["filename"]), np.int16)


def test_an_imported_lora_paints_as_in_the_hosts_own_loader(server):
    file, delta = community_lora(server)
    said = server.run(take_in("taken", "loras/my_lora.safetensors", triggers="zzz"))["3"]["text"][0]
    assert "sd1-7x128" in said and "<my_lora>, zzz" in said
    concept = load_concept(server.bank("taken") / "my_lora.safetensors")
    assert any(torch.allclose(f.delta(), delta, atol=1e-6) for f in concept.factors.values())
    ours, theirs = picture(server, paint("taken", "a dog, zzz")), picture(server, paint("", "a dog, zzz", lora=file.name))
    without = picture(server, paint("taken", "a dog"))
    assert np.abs(ours - theirs).max() <= 1 and np.abs(ours - without).max() > 20


def test_an_import_queued_again_changes_nothing_and_another_is_refused(server):
    file, _ = community_lora(server, "loras/again.safetensors")
    server.run(take_in("reimported", "loras/again.safetensors"))
    written = server.bank("reimported") / "again.safetensors"
    first = written.stat().st_mtime_ns
    server.run(take_in("reimported", "loras/again.safetensors"))
    assert written.stat().st_mtime_ns == first
    assert "'again' already" in server.error(take_in("reimported", "loras/again.safetensors", triggers="other"))
    server.run(take_in("reimported", "loras/again.safetensors", triggers="other", existing="replace"))
    assert load_concept(written).triggers == ("other",)


def test_an_imported_embedding_is_a_word(server):
    (server.folder / "models" / "embeddings").mkdir(exist_ok=True)
    rows = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    save_file({"clip_l": rows}, server.folder / "models" / "embeddings" / "toy.safetensors")
    server.run(take_in("words", "embeddings/toy.safetensors", class_word="toy"))
    ours = picture(server, paint("words", "a <toy> on the grass"))
    assert np.abs(ours - picture(server, paint("words", "a on the grass"))).max() > 5


def test_an_import_that_cannot_be_is_named(server):
    community_lora(server, "loras/dora.safetensors", **{f"{ATTENTION.format('to_k')}.dora_scale": torch.ones(128, 1)})
    assert "dora.safetensors" in (said := server.error(take_in("bad", "loras/dora.safetensors"))) and "DoRA" in said
    (server.folder / "models" / "loras" / "code.pth").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    assert "code.pth: it wants to run code (posix.system): refused" in server.error(take_in("bad", "loras/code.pth"))


def look(path="", file="none, the path below"):
    return {"1": node("CIDMInspectFile", file=file, path=str(path), architecture="from the file")}


def test_a_file_is_told_by_what_import_would_make_of_it(server):
    community_lora(server, "loras/seen.safetensors", **{"lora_unet_conv_in.diff_b": torch.ones(64)})
    (said,) = server.run(look(file="loras/seen.safetensors"))["1"]["text"]
    assert "a LoRA for Doodle (sd1-7x128)" in said and "2 layers of the model, rank 4" in said and "6 of 7 tensors" in said
    assert "not used: 1, a bias: lora_unet_conv_in.diff_b" in said
    (server.folder / "models" / "loras" / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
    for how in (look(file="loras/pointer.safetensors"), look(server.folder / "models" / "loras" / "pointer.safetensors")):
        assert "git lfs pull" in server.run(how)["1"]["text"][0]
    assert "git lfs pull" in server.error(take_in("bad", "loras/pointer.safetensors"))
    server.run(take_in("looked_at", "loras/seen.safetensors"))
    assert "a bank of 1 concepts" in server.run(look("looked_at"))["1"]["text"][0]
    assert "there is nothing to inspect" in server.error(look())


def test_concepts_are_exported_as_files_that_the_host_reads(server):
    server.run(learn("exported", name="dog"))
    server.run(learn("exported", name="cat"))
    shutil.rmtree(server.folder / "output" / "loras", ignore_errors=True)  # of the templates
    bank = {"1": node("CIDMOpenBank", name="exported")}
    how = dict(bank=["1", 0], rank=2, strengths="1, 0.5", merged_name="both")
    server.run(bank | {"2": node("CIDMExportConcept", names="dog", form="lora and embedding", **how)})
    folder = server.folder / "output" / "loras"
    assert sorted(file.name for file in folder.iterdir()) == ["dog.safetensors", "dog_words.safetensors"]
    concept = load_concept(server.bank("exported") / "dog.safetensors")
    assert torch.allclose(load_file(folder / "dog_words.safetensors")["clip_l"], next(iter(concept.tokens.values())).mean(1), atol=1e-6)
    for name, place in (("dog.safetensors", "loras"), ("dog_words.safetensors", "embeddings")):
        (server.folder / "models" / place).mkdir(parents=True, exist_ok=True)
        (server.folder / "models" / place / name).write_bytes((folder / name).read_bytes())
    picture(server, paint("", "a embedding:dog_words on the grass", lora="dog.safetensors"))
    log = server.log.read_text()
    assert "lora key not loaded" not in log and "dog_words" not in log
    said = server.run(bank | {"2": node("CIDMExportConcept", names="", form="one merged LoRA", **how)})["2"]["text"][0]
    assert "both.safetensors" in said and "relative error 0." in said
    assert "2 strengths for 1 concepts" in server.error(bank | {"2": node("CIDMExportConcept", names="dog", form="one merged LoRA", **how)})
