"""Learning in a running ComfyUI: tasks queued again, Cancel, data sets, and what bad input says."""

import json
import random
import time
from dataclasses import replace

from graphs import SAVED, learn, load, node, photos, speak

from cidm_ops.bank.concept_file import load_concept, save_concept


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
        assert "learned on sd1-16x768" in said and "sd1-7x160" in said
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
