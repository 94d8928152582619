"""Banks in a running ComfyUI, without a model: managed, looked at, compressed and expanded."""

import json
from pathlib import Path

import pytest
import torch
from graphs import SAVED, node
from PIL import Image

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.lowrank import LowRank

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_{}"


def fill(folder: Path, *names: str) -> Bank:
    """Small concepts of Doodle's shape, of random numbers."""
    bank = Bank(folder)
    for name in names:
        torch.manual_seed(sum(name.encode()))
        factors = {LAYER.format(side): LowRank(torch.randn(192, 4), torch.randn(4, 128)) for side in "kv"}
        tokens = {"clip_l": torch.randn(2, 7, 128)}
        bank = bank.add(
            Concept(
                name=name,
                class_word=name,
                words=(f"<{name}.1>", f"<{name}.2>"),
                factors=factors,
                tokens=tokens,
                architecture="sd1-7x160",
                fingerprint="545bc68b97d0",
            )
        )
    return bank


@pytest.fixture
def two(server) -> Bank:
    """The bank that the workflows speak of."""
    folder = server.bank("doodle_two")
    return Bank(folder) if folder.is_dir() else fill(folder, "dog", "cat")


def manage(bank: str, action: str, **more):
    texts = dict.fromkeys(("concept", "new_name", "other_bank", "author", "license", "description"), "")
    inputs = {"bank": ["1", 0], "action": action, "place": 1, "existing": "skip", **texts, **more}
    return {"1": node("CIDMOpenBank", name=bank), "2": node("CIDMManageBank", **inputs)}


@pytest.mark.parametrize("name", ["manage_a_bank", "compress_a_bank"])
def test_the_workflows_that_keep_a_bank_run(server, two, name):
    prompt = json.loads((SAVED / f"{name}.json").read_text(encoding="utf-8"))
    for step in prompt.values():
        if step["class_type"] == "CIDMExpandBank":
            step["inputs"]["name"] = "expanded_by_workflow"
    outputs = server.run(prompt)
    assert next(key for key, step in prompt.items() if step["class_type"] == "CIDMBankTable") in outputs
    for shown in outputs.values():
        assert "Warning" not in " ".join(shown.get("text", []))
        for image in shown.get("images", []):
            assert min(Image.open(next(server.folder.rglob(image["filename"]))).size) > 100
    server.run(prompt)  # and once more


def test_the_thumbnail_of_the_workflow_is_in_the_file(server, two):
    server.run(json.loads((SAVED / "manage_a_bank.json").read_text(encoding="utf-8")))
    assert two.get("dog").preview.startswith(b"\xff\xd8") and two.get("dog").about["license"] == "CC0-1.0"


def test_a_compressed_bank_comes_back_within_the_tolerance(server, two):
    server.run(json.loads((SAVED / "compress_a_bank.json").read_text(encoding="utf-8")))
    assert (server.bank("doodle_two").parent / "doodle_two.compressed.safetensors").is_file()
    back = Bank(server.bank("doodle_two_expanded"))
    assert back.names == two.names
    for name in two.names:
        ours, theirs = two.get(name), back.get(name)
        assert torch.equal(ours.tokens["clip_l"], theirs.tokens["clip_l"])
        for layer, f in ours.factors.items():
            assert (f.delta() - theirs.factors[layer].delta()).norm() < 0.05 * f.delta().norm()


def test_concepts_are_renamed_moved_removed_and_merged_once(server):
    fill(server.bank("ours"), "ant", "bee", "cow")
    fill(server.bank("theirs"), "cow", "doe")
    for prompt, names in (
        (manage("ours", "rename", concept="bee", new_name="wasp"), ["ant", "wasp", "cow"]),
        (manage("ours", "move", concept="cow", place=1), ["cow", "ant", "wasp"]),
        (manage("ours", "remove", concept="ant"), ["cow", "wasp"]),
        (manage("ours", "merge", other_bank="theirs"), ["cow", "wasp", "doe"]),
    ):
        for _ in range(2):
            server.run(prompt)
            assert Bank(server.bank("ours")).names == names
    assert Bank(server.bank("ours")).read("a <wasp>").text == "a <wasp.1> <wasp.2>"
    assert "doe: whole" in server.run(manage("ours", "verify"))["2"]["text"][0]
    assert "'wasp'" in server.error(manage("ours", "rename", concept="cow", new_name="wasp"))
    assert "no concept 'bear'" in server.error(manage("ours", "move", concept="bear"))


def test_a_damaged_file_is_red_and_named(server):
    bank = fill(server.bank("hurt"), "ant", "bee")
    bank.file("bee").write_bytes(bank.file("bee").read_bytes()[:500])
    text = server.run({"1": node("CIDMOpenBank", name="hurt"), "2": node("CIDMBankTable", bank=["1", 0])})["2"]["text"][0]
    assert "Warning: bee.safetensors" in text and "<ant>" in text
    assert "bee.safetensors" in server.error(
        {"1": node("CIDMOpenBank", name="hurt"), "2": node("CIDMConceptCard", bank=["1", 0], name="bee")}
    )
    assert "bee.safetensors" in server.run(manage("hurt", "repair"))["2"]["text"][0]


def test_a_prompt_is_read_without_a_model_and_the_unknown_is_said(server, two):
    prompt = {"1": node("CIDMOpenBank", name="doodle_two"), "2": node("CIDMRoutingPreview", bank=["1", 0], text="a <dog:0.5> and a <cow>")}
    outputs = server.run(prompt)["2"]
    assert outputs["images"] and "<dog>, a dog: 0.5" in outputs["text"][0] and "<cow>: no concept" in outputs["text"][0]
