"""Draw Regions in the real front end, in both of its renderers: boxes drawn with the mouse and the keyboard are the text that is sent."""

import json
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="browser tests need the package playwright")
import frontend

SAVED = Path(__file__).parent / "saved"
SENT = ("a <dog> on the left", "a <cat> on the right", "a <duck> in the middle")
DRAWN = [[0.05, 0.1, 0.4, 0.9], [0.6, 0.1, 0.95, 0.9], [0.45, 0.3, 0.55, 0.8]]

pytestmark = pytest.mark.skipif(frontend.CHROMIUM is None, reason="browser tests need chromium")

SHOW = """async text => {
    const node = app.graph._nodes.find(n => n.type === 'CIDMRegionBoxes');
    if (text !== null) node.widgets[0].value = text;
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [150 - node.pos[0], 120 - node.pos[1]];
    app.canvas.setDirty(true, true);
    await new Promise(done => setTimeout(done, 1000));
}"""
TEXT = "() => app.graph._nodes.find(n => n.type === 'CIDMRegionBoxes').widgets[0].value"
NODES = "() => app.graph._nodes.filter(n => n.type === 'CIDMRegionBoxes').length"
HALVES = '[{"text": "a dog", "box": [0.1, 0.1, 0.4, 0.4]}, {"text": "a cat", "box": [0.5, 0.5, 0.8, 0.9], "strength": 0.5}]'


@pytest.fixture(params=["canvas", "vue"])
def editor(request, page):
    """The shipped workflow in view, in one of the renderers."""
    vue = request.param == "vue"
    mounts = page.evaluate(frontend.RENDERER, vue)
    if vue and not mounts:
        page.evaluate(frontend.RENDERER, False)
        pytest.skip("the Vue renderer of this front end has no DOM widgets yet: the text stays a text field there")
    frontend.load(page, json.loads((SAVED / "draw_regions.json").read_text(encoding="utf-8")))
    page.evaluate(SHOW, None)
    yield page
    page.evaluate(frontend.RENDERER, False)


def boxes(page):
    return [region["box"] for region in json.loads(page.evaluate(TEXT))]


def point(page, x, y):
    stage = page.locator(".cidm-regions .stage").bounding_box()
    return stage["x"] + x * stage["width"], stage["y"] + y * stage["height"]


def pull(page, start, end):
    page.mouse.move(*point(page, *start))
    page.mouse.down()
    page.mouse.move(*point(page, *((a + b) / 2 for a, b in zip(start, end, strict=True))))
    page.mouse.move(*point(page, *end))
    page.mouse.up()


def test_boxes_are_drawn_described_painted_and_there_after_a_reload(editor):
    page = editor
    page.evaluate(SHOW, "[]")
    for (left, top, right, bottom), text in zip(DRAWN, SENT, strict=True):
        pull(page, (left, top), (right, bottom))
        page.locator(".cidm-regions .prompt").click()
        page.keyboard.type(text)
    page.locator(".cidm-regions input[name=priority]").fill("2")
    page.locator(".cidm-regions .stage").focus()
    written = json.loads(page.evaluate(TEXT))
    assert [region["text"] for region in written] == list(SENT)
    assert [region["box"] for region in written] == [pytest.approx(box, abs=0.011) for box in DRAWN]
    assert [region.get("priority") for region in written] == [None, None, 2]
    page.evaluate("() => { for (const n of app.graph._nodes) for (const w of n.widgets || []) if (w.name === 'steps') w.value = 3 }")
    assert page.evaluate(frontend.RUN) == ""
    page.wait_for_timeout(1500)
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function(frontend.READY, timeout=120_000)
    page.wait_for_function(f"() => ({NODES})() === 1", timeout=60_000)
    page.evaluate(SHOW, None)
    assert json.loads(page.evaluate(TEXT)) == written
    assert page.locator(".cidm-regions .box").count() == 3
    assert [
        label.rpartition(": ")[2] for label in sorted(page.locator(".cidm-regions .box").evaluate_all("all => all.map(b => b.ariaLabel)"))
    ] == list(SENT)


def test_a_box_is_moved_and_resized_with_the_mouse(editor):
    page = editor
    page.evaluate(SHOW, HALVES)
    pull(page, (0.25, 0.25), (0.35, 0.3))
    assert boxes(page)[0] == pytest.approx([0.2, 0.15, 0.5, 0.45], abs=0.011)
    pull(page, (0.8, 0.9), (2, 0.7))
    assert boxes(page)[1] == pytest.approx([0.5, 0.5, 1, 0.7], abs=0.011), "as far as the picture goes"
    pull(page, (0.2, 0.3), (0.1, 0.3))
    assert boxes(page)[0] == pytest.approx([0.1, 0.15, 0.5, 0.45], abs=0.011)
    assert json.loads(page.evaluate(TEXT))[1]["strength"] == 0.5


def test_a_box_is_moved_resized_and_removed_with_the_keyboard_and_the_node_stays(editor):
    page = editor
    page.evaluate(SHOW, HALVES)
    page.mouse.click(*point(page, 0.65, 0.7))
    for key in ("ArrowLeft", "ArrowUp", "ArrowUp", "Shift+ArrowRight"):
        page.keyboard.press(key)
    assert boxes(page) == [[0.1, 0.1, 0.4, 0.4], [0.49, 0.48, 0.8, 0.88]]
    page.keyboard.press("1")
    page.keyboard.press("Delete")
    assert boxes(page) == [[0.49, 0.48, 0.8, 0.88]]
    page.keyboard.press("Backspace")
    page.keyboard.press("Delete")
    assert boxes(page) == [] and page.evaluate(NODES) == 1
    page.keyboard.press("Insert")
    page.keyboard.press("Enter")
    page.keyboard.type("a <duck>")
    assert json.loads(page.evaluate(TEXT))[0]["text"] == "a <duck>"


def test_what_was_done_is_undone(editor):
    page = editor
    page.evaluate(SHOW, HALVES)
    page.mouse.click(*point(page, 0.65, 0.7))
    page.wait_for_timeout(300)
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(300)
    page.keyboard.press("Delete")
    page.wait_for_timeout(300)
    assert len(boxes(page)) == 1
    page.keyboard.press("Control+z")
    page.wait_for_timeout(1500)
    assert boxes(page)[1] == [0.49, 0.5, 0.79, 0.9]
    assert page.locator(".cidm-regions .box").count() == 2
    pull(page, (0.25, 0.25), (0.35, 0.25))
    assert boxes(page)[0] == pytest.approx([0.2, 0.1, 0.5, 0.4], abs=0.011), "what is on the page is the new node's"


def test_keys_are_the_graphs_again_when_the_focus_is_elsewhere(editor):
    page = editor
    page.evaluate(SHOW, HALVES)
    page.mouse.click(*point(page, 0.25, 0.25))
    page.mouse.click(120, 820)  # the empty graph
    page.evaluate("() => app.canvas.selectNode(app.graph._nodes.find(n => n.type === 'CIDMRegionBoxes'))")
    page.keyboard.press("Delete")
    page.wait_for_timeout(500)
    assert page.evaluate(NODES) == 0


def test_a_copied_node_has_the_same_boxes_and_its_own(editor):
    page = editor
    page.evaluate(SHOW, HALVES)
    page.evaluate(
        """() => { const node = app.graph._nodes.find(n => n.type === 'CIDMRegionBoxes');
        app.canvas.copyToClipboard([node]); app.canvas.pasteFromClipboard(); }"""
    )
    page.wait_for_timeout(800)
    texts = page.evaluate("() => app.graph._nodes.filter(n => n.type === 'CIDMRegionBoxes').map(n => n.widgets[0].value)")
    assert len(texts) == 2 and [json.loads(t) for t in texts] == [json.loads(HALVES)] * 2


@pytest.mark.parametrize("text", ["no json", "[1]", '[{"text": "a", "box": [0, 0, 2, 1]}]', "{}"])
def test_a_text_that_cannot_be_drawn_stays_and_can_be_corrected(editor, text):
    page = editor
    page.evaluate(SHOW, text)
    assert "cannot be drawn" in page.locator(".cidm-regions .error").inner_text()
    raw = page.locator(".cidm-regions .raw")
    assert raw.input_value() == text == page.evaluate(TEXT)
    raw.fill(HALVES)
    page.locator(".cidm-regions button", has_text="JSON").focus()
    assert page.evaluate(TEXT) == HALVES
    assert page.locator(".cidm-regions .box").count() == 2 and not page.locator(".cidm-regions .error").is_visible()


STAGE = "() => { const {width, height} = document.querySelector('.cidm-regions .stage').getBoundingClientRect(); return width / height; }"
SIZE = """async size => {
    const {widgets} = app.graph._nodes.find(n => n.type === 'EmptyLatentImage');
    size.forEach((side, i) => widgets[i].value = side);
    app.canvas.emitBeforeChange();
    app.canvas.emitAfterChange();
    await new Promise(done => setTimeout(done, 500));
}"""


def test_the_shape_is_that_of_the_latent_until_one_is_chosen_by_hand(editor):
    page = editor
    page.evaluate(SHOW, HALVES)
    shape = page.locator(".cidm-regions select")
    assert page.evaluate(STAGE) == pytest.approx(2, abs=0.02) and shape.input_value() == "2:1", "the workflow has it by hand"
    shape.select_option("")
    page.evaluate(SIZE, [128, 256])
    assert page.evaluate(STAGE) == pytest.approx(0.5, abs=0.02)
    assert shape.locator("option").first.inner_text() == "128 x 256"
    shape.select_option("4:3")
    page.evaluate(SIZE, [256, 256])
    assert page.evaluate(STAGE) == pytest.approx(4 / 3, abs=0.02), "a hand's choice stays"
    shape.select_option("")
    assert page.evaluate(STAGE) == pytest.approx(1, abs=0.02)
    assert page.evaluate(TEXT) == HALVES


def test_boxes_are_drawn_over_the_last_picture(editor):
    page = editor
    page.evaluate("() => { for (const n of app.graph._nodes) for (const w of n.widgets || []) if (w.name === 'steps') w.value = 1 }")
    page.evaluate("() => { app.graph._nodes.find(n => n.type === 'KSampler').widgets[0].value = Math.floor(1e9 * Math.random()) }")
    assert page.evaluate(frontend.RUN) == ""
    page.evaluate(SHOW, HALVES)
    picture, toggle = page.locator(".cidm-regions .picture"), page.locator(".cidm-regions button", has_text="Picture")
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [256, 128]
    assert "filename=regions" in picture.get_attribute("src")
    toggle.click()
    assert picture.count() == 0 and toggle.get_attribute("aria-pressed") == "false"
    toggle.click()
    pull(page, (0.25, 0.25), (0.35, 0.3))
    assert boxes(page)[0] == pytest.approx([0.2, 0.15, 0.5, 0.45], abs=0.011)
    assert picture.count() == 1 and set(json.loads(page.evaluate(TEXT))[0]) == {"text", "box"}
    page.evaluate("() => { delete app.nodeOutputs[app.graph._nodes.find(n => n.type === 'SaveImage').id] }")
    page.mouse.move(10, 10)
    page.mouse.move(*point(page, 0.5, 0.5))
    assert picture.count() == 0, "a figure of Preview Regions is no picture to draw over"
