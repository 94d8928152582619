"""Workflows in the real front end: they load, say the same as their twins for the server, end in pictures, and their wires have colours."""

import json
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="browser tests need the package playwright")
import frontend

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
SAVED = Path(__file__).parent / "saved"  # workflows as people saved them from the first version on

pytestmark = pytest.mark.skipif(frontend.CHROMIUM is None, reason="browser tests need chromium")

PALETTE = """async name => {
    await app.extensionManager.setting.set('Comfy.ColorPalette', name);
    await new Promise(done => setTimeout(done, 1000));
}"""
SHOWN = """types => {
    const style = getComputedStyle(document.documentElement), links = app.canvas.constructor.link_type_colors;
    return types.map(type => [links[type], app.canvas.default_connection_color_byType[type],
        style.getPropertyValue(`--color-datatype-${type}`).trim()]);
}"""


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_and_its_twin_for_the_server_say_the_same(page, server, file):
    assert frontend.load(page, read(file)) == []
    said = page.evaluate("async () => (await app.graphToPrompt()).output")
    twin = read(file.parent / "api" / file.name)

    def meant(node):
        """Without widgets that the front end adds for itself and the server does not know."""
        kind = node["class_type"]
        known = server.get(f"/object_info/{kind}")[kind]["input"]
        return kind, {k: v for k, v in node["inputs"].items() if k in known.get("required", {}) | known.get("optional", {})}

    assert {key: meant(node) for key, node in said.items()} == {key: meant(node) for key, node in twin.items()}


def test_a_training_is_watched_cancelled_and_gone_on_with(page):
    assert frontend.load(page, read(SAVED / "watch_a_training.json")) == []
    page.evaluate(
        """() => { for (const n of app.graph._nodes) for (const w of n.widgets || []) {
            if (w.name === 'steps') w.value = n.type === 'CIDMTrainConcept' ? 24 : 3;
            if (w.name === 'preview_every') w.value = 3;
        } }"""
    )
    said = page.evaluate(frontend.PREVIEW, ["CIDMTrainConcept", 2])
    assert "/24  loss" in said and "left" in said
    assert page.evaluate("() => app.graph._nodes.find(n => n.type === 'CIDMTrainConcept').imgs.length") == 1
    assert page.evaluate(frontend.CANCEL)
    assert page.evaluate(frontend.RUN) == ""
    page.evaluate(frontend.FRAME)
    pictures = page.evaluate(frontend.PICTURES)
    shown = page.evaluate("() => Object.fromEntries(app.graph._nodes.map(n => [n.type, String(n.id)]))")
    assert pictures[shown["SaveImage"]] == [128] * 4 and pictures[shown["LossGraphNode"]] and pictures[shown["CIDMPreviewDataset"]]


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_every_type_of_ours_has_a_colour_of_its_own(page, server, palette):
    info = server.get("/object_info")
    ours = [node for name, node in info.items() if name.startswith("CIDM")]
    inputs = {slot[0] for node in ours for group in node["input"].values() if isinstance(group, dict) for slot in group.values()}
    types = sorted(t for t in inputs | {t for node in ours for t in node["output"]} if isinstance(t, str) and t.startswith("CIDM_"))
    page.evaluate(PALETTE, palette)
    shown = page.evaluate(SHOWN, types)
    core = page.evaluate(SHOWN, ["MODEL", "CLIP", "CONDITIONING", "LATENT", "IMAGE", "MASK", "VAE"])
    page.evaluate(PALETTE, "dark")
    assert len(types) >= 10 and all(link and link == slot == variable for link, slot, variable in shown), dict(
        zip(types, shown, strict=True)
    )
    assert len({link for link, *_ in shown} | {link for link, *_ in core} - {""}) == len(types) + len(core)


@pytest.mark.parametrize("file", sorted((PACK / "subgraphs").glob("*.json")), ids=lambda file: file.stem)
def test_a_blueprint_is_one_node_with_what_a_person_sets(page, server, file):
    assert frontend.load(page, read(file)) == []
    title, inputs, outputs = page.evaluate(
        "() => { const [n] = app.graph._nodes; return [n.title, n.inputs.map(i => i.type), n.outputs.map(o => o.type)]; }"
    )
    assert title == file.stem and {"MODEL", "CLIP", "VAE", "CIDM_BANK", "STRING"} <= set(inputs) and len(outputs) == 1
    if server.host.version != "0.3.64":  # the floor lists none
        assert file.stem in [entry["name"] for entry in server.get("/global_subgraphs").values()]
