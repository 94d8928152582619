"""The pictures at the head of help pages: nodes as they look when a template has run. ``python tests/browser/help_pictures.py CHECKOUT``
writes ``web/docs/NODE.webp``; names of nodes after that, and only theirs are made.
"""

import io
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
sys.path[:0] = [str(PACK), str(PACK / ".ci"), str(HERE.parent), str(HERE)]

import frontend  # noqa: E402
from comfy_server import Server  # noqa: E402
from hosts import host  # noqa: E402
from PIL import Image  # noqa: E402

WIDE = 560  # pixels, for a panel of about half of that on a dense screen
SHOWN = {
    "01": ("CIDMRegionBoxes", "CIDMPaint"),
    "02": ("CIDMRegionPreview",),
    "08": ("CIDMBankTable",),
    "10": ("CIDMConceptCard", "CIDMOverlapMap", "CIDMRoutingPreview"),
    "11": ("CIDMPresence",),
    "13": ("CIDMDiversity", "CIDMForgetting", "CIDMRoutingTable"),
}
WATCHED = ("01", "CIDMTrainConcept", 6)  # in the middle of its work: when it has shown so many previews
PLACE = """type => {
    const node = app.graph._nodes.find(n => n.type === type), {left, top} = app.canvas.canvas.getBoundingClientRect();
    const room = app.canvas.canvas.getBoundingClientRect(), scale = Math.min(1, (room.height - 90) / (node.size[1] + 30));
    app.canvas.deselectAll();
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [300 - node.pos[0], 60 / scale - node.pos[1] + 30];
    app.canvas.setDirty(true, true);
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0], node.pos[1] - 30]);
    return {x: left + x - 6, y: top + y - 6, width: node.size[0] * scale + 12, height: (node.size[1] + 30) * scale + 12};
}"""


def take_picture(page, kind: str) -> None:
    clip = page.evaluate(PLACE, kind)
    page.wait_for_timeout(1500)
    shot = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    file = PACK / "web" / "docs" / f"{kind}.webp"
    shot.resize((WIDE, round(WIDE * shot.height / shot.width)), Image.Resampling.LANCZOS).save(file, quality=82, method=6)
    print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB")


def main(checkout: str, *only: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(host(Path(checkout).resolve()), Path(folder))
        try:
            with frontend.open_page(server.url, 1440, 1300) as page:
                for file in sorted((PACK / "workflows").glob("*.json")):
                    kinds = [kind for kind in SHOWN.get(file.stem[:2], ()) if not only or kind in only]
                    watched = WATCHED[0] == file.stem[:2] and (not only or WATCHED[1] in only)
                    if not kinds and not watched:
                        continue
                    frontend.load(page, json.loads(file.read_text(encoding="utf-8")))
                    page.evaluate(frontend.FRAME)
                    if watched:
                        page.evaluate(frontend.PREVIEW, WATCHED[1:])
                        take_picture(page, WATCHED[1])
                        page.evaluate(frontend.CANCEL)
                    assert page.evaluate(frontend.RUN) == ""
                    page.evaluate(frontend.FRAME)
                    for kind in kinds:
                        take_picture(page, kind)
        finally:
            server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
