"""ComfyUI's real front end in a browser: drop a workflow in, run it, take its picture.

``python tests/browser/frontend.py CHECKOUT WORKFLOW.json PICTURE.png`` takes the picture of the README: the graph when it has run, or
with ``preview`` behind it, in the middle of a training that has shown two previews.
"""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
READY = "window.app && window.app.graph && window.app.vueAppReady"
LOAD = """async workflow => {
    await app.loadGraphData(workflow);
    await new Promise(done => setTimeout(done, 500));
    return app.graph._nodes.filter(node => !LiteGraph.registered_node_types[node.type]).map(node => node.type);
}"""
RUN = """async () => {
    const ended = new Promise(done => {
        app.api.addEventListener('execution_success', () => done(''));
        for (const kind of ['execution_error', 'execution_interrupted'])
            app.api.addEventListener(kind, event => done(kind + ': ' + (event.detail.exception_message || '')));
    });
    app.queuePrompt(0);
    const error = await ended;
    await new Promise(done => setTimeout(done, 300)); // the last messages
    return error;
}"""
# Queues the graph and comes back when a node of this type has shown so many previews; tells what is written in it.
PREVIEW = """async ([type, count]) => {
    const node = app.graph._nodes.find(n => n.type === type);
    let seen = 0;
    const shown = new Promise(done => app.api.addEventListener('b_preview', () => ++seen === count && done()));
    app.queuePrompt(0);
    await shown;
    await new Promise(done => setTimeout(done, 1000));
    return (node.widgets || []).map(w => w.value).filter(v => typeof v === 'string').join('\\n');
}"""
CANCEL = """async () => {
    const ended = new Promise(done => app.api.addEventListener('execution_interrupted', () => done(true)));
    app.api.interrupt(null);
    return await ended;
}"""
PICTURES = (
    "() => Object.fromEntries(app.graph._nodes.filter(n => n.imgs && n.imgs.length).map(n => [n.id, n.imgs.map(i => i.naturalWidth)]))"
)
# Draws with the classic canvas or with Nodes 2.0; tells whether this front end's Nodes 2.0 has the elements of widgets.
RENDERER = """async vue => {
    await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue);
    await new Promise(done => setTimeout(done, 1500));
    return 'widgetId' in (LiteGraph.createNode('CIDMRegionBoxes').widgets[0]);
}"""
# Brings the first node of a type into view, as large as it is.
SHOW = """async type => {
    const node = app.graph._nodes.find(n => n.type === type);
    app.canvas.deselectAll(); // a chosen node lies above the text areas of others
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [150 - node.pos[0], 120 - node.pos[1]];
    app.canvas.setDirty(true, true);
    await new Promise(done => setTimeout(done, 700));
}"""
# Where a widget that the canvas draws is on the page.
WIDGET = """([type, name]) => {
    const node = app.graph._nodes.find(n => n.type === type), {left, top} = app.canvas.canvas.getBoundingClientRect();
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + 10 +
        node.widgets.find(w => w.name === name).last_y]);
    return [left + x, top + y];
}"""
VALUE = "([type, name]) => app.graph._nodes.find(n => n.type === type).widgets.find(w => w.name === name).value"
ELEMENT = "([type, name]) => app.graph._nodes.find(n => n.type === type).widgets.find(w => w.name === name).element"
# The whole graph in view at full size, without what floats above it.
FRAME = """async () => {
    const [left, top, right, bottom] = [...app.graph._nodes, ...app.graph._groups]
        .map(n => [n.pos[0], n.pos[1] - 40, n.pos[0] + n.size[0], n.pos[1] + n.size[1]])
        .reduce((a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])]);
    const canvas = app.canvas.canvas, box = canvas.getBoundingClientRect();
    app.canvas.ds.scale = Math.min(box.width / (right - left + 60), box.height / (bottom - top + 60));
    app.canvas.ds.offset = [30 - left, 30 - top];
    app.canvas.render_canvas_border = false;
    app.canvas.show_info = false;
    app.canvas.setDirty(true, true);
    const floating = '.comfyui-body-top, .comfyui-body-left, .side-tool-bar-container, .graph-canvas-panel, .p-panel, .litegraph-minimap';
    for (const element of document.querySelectorAll(floating)) element.style.visibility = 'hidden';
    const waiting = () => !LiteGraph.vueNodesMode && app.graph._nodes.some(n => app.nodeOutputs[n.id]?.images?.length && !n.imgs?.length);
    for (let turn = 0; turn < 3 || (turn < 60 && waiting()); turn++) await new Promise(done => setTimeout(done, 200));
}"""


@contextmanager
def open_page(url: str, width: int = 1600, height: int = 900) -> Iterator[Page]:
    """The front end, ready for a workflow."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(url, wait_until="domcontentloaded")
            page.wait_for_function(READY, timeout=120_000)
            page.wait_for_timeout(3000)
            page.keyboard.press("Escape")  # the templates of the first visit
            page.set_default_timeout(0)
            yield page
        finally:
            browser.close()


def enter(page: Page, kind: str, name: str) -> None:
    """Click into the text field of a widget as a person would, in either renderer."""
    page.evaluate(SHOW, kind)
    if page.evaluate("() => !!LiteGraph.vueNodesMode"):
        node = page.locator(f".lg-node[data-node-id='{page.evaluate('type => app.graph._nodes.find(n => n.type === type).id', kind)}']")
        label = node.locator("label", has_text=re.compile(f"^ *{name} *$"))
        page.locator(f"#{label.get_attribute('for')}").click() if label.count() else node.locator(f"input[aria-label='{name}']").click()
    elif element := page.evaluate_handle(ELEMENT, [kind, name]).as_element():
        element.click()
    else:
        page.mouse.click(*page.evaluate(WIDGET, [kind, name]))
        page.locator(".graphdialog .value").wait_for()


def load(page: Page, workflow: dict[str, Any]) -> list[str]:
    """Drop a workflow in; the types of nodes that the front end does not know."""
    return page.evaluate(LOAD, workflow)


def take_picture(checkout: str, workflow: str, picture: str, moment: str = "end") -> None:
    pack = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(pack / "tests"), str(pack / ".ci")]
    from comfy_server import Server
    from hosts import host

    with tempfile.TemporaryDirectory() as folder:
        server = Server(host(Path(checkout).resolve()), Path(folder))
        try:
            with open_page(server.url, 3440, 1640) as page:
                unknown = load(page, json.loads(Path(workflow).read_text(encoding="utf-8")))
                wrong = unknown
                if moment == "preview":
                    page.evaluate(PREVIEW, ["CIDMTrainConcept", 2])
                else:
                    wrong = wrong or page.evaluate(RUN)
                page.evaluate(FRAME)
                page.screenshot(path=picture)
                print(wrong or f"{picture}: taken")
        finally:
            server.close()


if __name__ == "__main__":
    take_picture(*sys.argv[1:])
