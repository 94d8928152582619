"""Templates as a stranger meets them: opened from the template browser, legible, without an alert, without overlaps, run to pictures."""

import json
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="browser tests need the package playwright")
import frontend

from cidm_ops.doodle.concepts import CONCEPTS, examples

PACK = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((PACK / "workflows").glob("*.json"))
BRINGS = ("CheckpointLoaderSimple", "CLIPVisionLoader", "UNETLoader")  # load what does not ship
DOODLE_BASE = "Doodle (comes with CIDM)"
PATIENCE = 180_000  # ms, for two browsers beside each other on two cores that may be short of memory
CROWDED = ("05", "10", "11", "15")  # in Nodes 2.0, where lines of text push what is below, more than a screen when they have run
DRAFT = "the Vue renderer of this front end is a first draft"
LEGIBLE, LARGEST = 0.7, (1450, 900)  # zoom on a screen of 1440 x 900; units of the canvas, of which Training Settings alone takes 892

pytestmark = pytest.mark.skipif(frontend.CHROMIUM is None, reason="browser tests need chromium")

# Where each node is, in units of the canvas, its title included: by its element in Nodes 2.0, by the graph in the canvas.
PLACES = """() => app.graph._nodes.map(node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    if (!element) return [node.type, node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30];
    const box = element.getBoundingClientRect(), canvas = app.canvas.canvas.getBoundingClientRect(), { scale, offset } = app.canvas.ds;
    return [node.type, (box.left - canvas.left) / scale - offset[0], (box.top - canvas.top) / scale - offset[1], box.width / scale,
        box.height / scale];
})"""
OPEN = "() => app.extensionManager.command.execute('Comfy.BrowseTemplates')"
SET = "([kind, name, value]) => { app.graph._nodes.find(n => n.type === kind).widgets.find(w => w.name === name).value = value }"
PHOTOS = "() => app.graph._nodes.filter(n => n.type === 'LoadImage').forEach((node, i) => { node.widgets[0].value = `mine${i}.png` })"
ALERTS = "() => [...document.querySelectorAll('.p-toast-message, [role=alert], [role=dialog]')].map(e => e.innerText).filter(Boolean)"


def kinds_of(file):
    return [node["type"] for node in json.loads(file.read_text(encoding="utf-8"))["nodes"]]


def runs_as_it_is(file):
    """Whether a template needs nothing that does not ship."""
    text = file.read_text(encoding="utf-8")
    return not set(BRINGS) & set(kinds_of(file)) and ("CIDMLoadBase" not in text or DOODLE_BASE in text)


@pytest.fixture(scope="module")
def screen(server):
    """A laptop's screen, and what its console says; ComfyUI's own example lies in its input folder.

    What the front end asks of other machines, such as its news, fails where there is no network, and is not ours.
    """
    Image.new("RGB", (64, 64)).save(server.folder / "input" / "example.png")
    with frontend.open_page(server.url, 1440, 900) as page:
        page.said = []
        page.on("console", lambda message: page.said.append(message.text) if is_an_error_here(message, server.url) else None)
        page.on("pageerror", lambda error: page.said.append(str(error)))
        yield page


def is_an_error_here(message, url):
    """Whether the console tells an error of what this server sent, or of no file at all."""
    source = message.location["url"]
    return message.type == "error" and (source.startswith(url) or not source.startswith("http"))


def overlaps(places):
    """Pairs of nodes that cover each other by more than a pixel."""
    found = []
    for i, (one, *a) in enumerate(places):
        for other, *b in places[:i]:
            width, height = (min(a[d] + a[d + 2], b[d] + b[d + 2]) - max(a[d], b[d]) for d in (0, 1))
            if width > 1 and height > 1:
                found.append((one, other, round(width), round(height)))
    return found


@contextmanager
def drawn_by_vue(page):
    """Draw with Nodes 2.0 meanwhile; gives whether this front end's are more than a first draft."""
    ready = page.evaluate(frontend.RENDERER, True)
    try:
        yield ready
    finally:
        page.evaluate(frontend.RENDERER, False)


def open_from_browser(page, server, name):
    """Open the template browser, choose the pack, and click on a card. A front end may bring the last cards when one scrolls."""
    page.evaluate(OPEN)
    dialog = page.get_by_role("dialog").last
    dialog.get_by_text(server.pack.name).last.click(timeout=PATIENCE)
    card = dialog.get_by_text(name, exact=True).first
    dialog.get_by_text(re.compile(r"^\d\d ")).first.hover(timeout=PATIENCE)
    for _ in TEMPLATES:
        if card.count():
            break
        page.mouse.wheel(0, 900)
        page.wait_for_timeout(500)
    card.click(timeout=PATIENCE)
    page.wait_for_function("() => !document.querySelector('[role=dialog]')", timeout=PATIENCE)
    page.wait_for_timeout(1500)


def hold_legible(page, kinds):
    """Hold what is open to what a stranger must see: its nodes, large enough to read, side by side, within a screen."""
    assert sorted(page.evaluate("() => app.graph._nodes.map(node => node.type)")) == sorted(kinds)
    places = page.evaluate(PLACES)
    assert page.evaluate("() => app.canvas.ds.scale") >= LEGIBLE
    assert overlaps(places) == []
    extent = [max(p[1 + d] + p[3 + d] for p in places) - min(p[1 + d] for p in places) for d in (0, 1)]
    assert all(side <= most for side, most in zip(extent, LARGEST, strict=True)), extent


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem[:2])
def test_a_template_opens_legible_without_an_alert_or_overlap(screen, server, file):
    """In the canvas, and then in Nodes 2.0, which are drawn in its place."""
    screen.said.clear()
    open_from_browser(screen, server, file.stem)
    kinds = kinds_of(file)
    assert "MarkdownNote" in kinds
    hold_legible(screen, kinds)
    with drawn_by_vue(screen) as ready:
        if ready:
            hold_legible(screen, kinds)
    assert screen.evaluate(ALERTS) == [] and screen.said == []


@pytest.mark.slow
@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem[:2])
def test_a_template_opens_legible_where_nodes_2_are_drawn_from_the_beginning(screen, server, file):
    screen.said.clear()
    with drawn_by_vue(screen) as ready:
        if not ready:
            pytest.skip(DRAFT)
        open_from_browser(screen, server, file.stem)
        hold_legible(screen, kinds_of(file))
    assert screen.evaluate(ALERTS) == [] and screen.said == []


@pytest.mark.parametrize("file", [file for file in TEMPLATES if runs_as_it_is(file)], ids=lambda file: file.stem[:2])
def test_a_template_runs_to_pictures_without_an_alert_or_overlap(screen, file):
    screen.said.clear()
    assert frontend.load(screen, json.loads(file.read_text(encoding="utf-8"))) == []
    screen.evaluate("() => { for (const n of app.graph._nodes) for (const w of n.widgets || []) if (w.name === 'steps') w.value = 3 }")
    assert screen.evaluate(frontend.RUN) == ""
    saved = screen.evaluate("() => app.graph._nodes.filter(n => n.type === 'SaveImage').map(n => String(n.id))")
    screen.evaluate(frontend.FRAME)  # the front end fetches the pictures of nodes in view
    assert overlaps(screen.evaluate(PLACES)) == []
    assert {*saved} <= screen.evaluate(frontend.PICTURES).keys() and screen.evaluate(frontend.PICTURES)
    with drawn_by_vue(screen) as ready:
        if ready and file.stem[:2] not in CROWDED:
            assert overlaps(screen.evaluate(PLACES)) == []
    assert screen.evaluate(ALERTS) == [] and screen.said == []


def test_own_photos_take_one_field(screen, server):
    """With a photo on each *Load Image* there is the class word to say, and a checkpoint to choose by who has one."""
    for i, example in enumerate(examples(CONCEPTS["duck"], 4)):
        Image.fromarray(example.picture).save(server.folder / "input" / f"mine{i}.png")
    template = next(file for file in TEMPLATES if file.stem.startswith("05"))
    assert frontend.load(screen, json.loads(template.read_text(encoding="utf-8"))) == []
    screen.evaluate(PHOTOS)
    screen.evaluate(SET, ["CIDMTrainConcept", "steps", 3])  # not to wait
    screen.evaluate(SET, ["CIDMTrainConcept", "class_word", "duck"])
    assert screen.evaluate(frontend.RUN) == ""
    screen.evaluate(frontend.FRAME)
    assert [128] in screen.evaluate(frontend.PICTURES).values()
