"""Films the README's first minute: two boxes are drawn, described and painted. ``python tests/browser/film.py CHECKOUT FILM.webp``."""

import io
import json
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
sys.path[:0] = [str(PACK), str(PACK / ".ci"), str(HERE.parent), str(HERE)]

import frontend  # noqa: E402
from comfy_server import Server  # noqa: E402
from hosts import host  # noqa: E402
from PIL import Image  # noqa: E402

TEMPLATE = "02 Two in one picture - draw boxes"
WIDTH, FRAME = 840, 120  # pixels; milliseconds
DRAWN = (((0.03, 0.06), (0.47, 0.97), "a <dog2> on the left in the snow"), ((0.53, 0.06), (0.97, 0.97), "a <cat> on the right in the snow"))
# The box editor without boxes beside what is saved, one picture; the other nodes below, out of sight.
STAGE = """() => {
    const find = type => app.graph._nodes.find(n => n.type === type), drawn = find('CIDMRegionBoxes'), saved = find('SaveImage');
    for (const node of app.graph._nodes) node.pos = [node.pos[0], node.pos[1] + 800];
    [drawn.pos, saved.pos] = [[0, 0], [520, 0]];
    for (const node of [drawn, saved]) node.setSize([500, 540]);
    drawn.widgets.find(w => w.name === 'boxes').value = '[]';
    find('EmptyLatentImage').widgets.find(w => w.name === 'batch_size').value = 1;
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [210, 130];
    for (const hidden of document.querySelectorAll('.litegraph-minimap, .p-toast, .side-tool-bar-container')) hidden.style.display = 'none';
    app.canvas.setDirty(true, true);
}"""
RUN = "() => { window.ended = false; app.api.addEventListener('execution_success', () => window.ended = true); app.queuePrompt(0); }"


def film(page, clip) -> list[Image.Image]:
    frames = []

    def show(times: int = 1) -> None:
        shot = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
        frames.extend([shot.resize((WIDTH, round(WIDTH * shot.height / shot.width)), Image.Resampling.LANCZOS)] * times)

    def point(x: float, y: float) -> tuple[float, float]:
        box = page.locator(".cidm-regions .stage").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    show(6)
    for start, end, text in DRAWN:
        page.mouse.move(*point(*start))
        page.mouse.down()
        for part in range(1, 7):
            page.mouse.move(*point(*(a + (b - a) * part / 6 for a, b in zip(start, end, strict=True))))
            show()
        page.mouse.up()
        page.locator(".cidm-regions .prompt").click()
        for i in range(0, len(text), 4):
            page.keyboard.insert_text(text[i : i + 4])
            show()
        page.locator(".cidm-regions .stage").focus()
        show(4)
    page.evaluate(RUN)
    began = time.monotonic()
    while not page.evaluate("() => window.ended") and time.monotonic() - began < 300:
        show()
        page.wait_for_timeout(700)
    page.wait_for_timeout(2500)
    show(25)
    return frames


def main(checkout: str, file: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(host(Path(checkout).resolve()), Path(folder))
        try:
            with frontend.open_page(server.url, 1440, 900) as page:
                workflow = json.loads((PACK / "workflows" / f"{TEMPLATE}.json").read_text(encoding="utf-8"))
                page.evaluate("async w => { await app.loadGraphData(w, true, true, 'boxes'); }", workflow)
                page.wait_for_timeout(2500)
                page.evaluate(STAGE)
                page.wait_for_timeout(1000)
                frames = film(page, {"x": 196, "y": 40, "width": 1050, "height": 660})
        finally:
            server.close()
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=FRAME, loop=0, quality=60, method=4)
    print(f"{file}: {len(frames)} frames, {Path(file).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
