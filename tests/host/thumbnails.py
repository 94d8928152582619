"""Makes the thumbnail of every template by running it: ``python tests/host/thumbnails.py CHECKOUT [TEMPLATE...]``.

A template that needs a checkpoint and photos gets Doodle and its drawings; the rest runs as it is. What it paints last, or else shows, is
put into a square beside it, where the template browser looks for it.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
sys.path[:0] = [str(PACK), str(PACK / ".ci"), str(HERE.parent), str(HERE)]

from comfy_server import Server  # noqa: E402
from graphs import SHIPPED, node, on_doodle  # noqa: E402
from hosts import host  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from cidm_ops.doodle.concepts import CONCEPTS, examples  # noqa: E402

SIDE = 512
SMALL: dict[str, Any] = {"width": 128, "height": 128}


def draw_photos(folder: Path, concept: str) -> None:
    """Draw four pictures of a concept of Doodle's world, as the photos of a user."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, example in enumerate(examples(CONCEPTS[concept], 4)):
        Image.fromarray(example.picture).save(folder / f"photo{i}.png")


def latent_for(kinds: set[str], given: dict[str, Any]) -> dict[str, Any]:
    """Four pictures for Doodle, wide ones where there are boxes. A size that the base gives stays."""
    if "CIDMRegionBoxes" in kinds:
        return {"width": 256, "height": 128, "batch_size": 4}
    return {"batch_size": 4} | (SMALL if isinstance(given["width"], int) else {})


def bring(server: Server, prompt: dict[str, Any]) -> dict[str, Any]:
    """Put Doodle and its drawings where a template waits for what its user has."""
    kinds = {step["class_type"] for step in prompt.values()}
    if not {"CheckpointLoaderSimple", "CIDMLoadBase", "UNETLoader"} & kinds:
        return prompt
    prompt = on_doodle(prompt)
    learns = "CIDMTrainConcept" in kinds
    loaded = iter(range(4))
    for step in prompt.values():
        given, kind = step["inputs"], step["class_type"]
        if kind in SHIPPED:
            step.update(SHIPPED[kind])
        elif kind == "CIDMOpenBank" and given["name"] == "my_concepts":
            step.update(node("CIDMDoodleBank", name="my_concepts"))
        elif kind == "LoadImage":
            given["image"] = f"my_dog/photo{next(loaded)}.png"
        elif kind == "CIDMImportConcept":
            place = server.folder / "models" / given["file"]
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file(load_file(PACK / "cidm_ops" / "doodle" / "ten" / "duck.safetensors"), place)  # without what makes it a concept
            given |= {"triggers": "my duck", "class_word": "duck"}
        elif kind == "EmptyLatentImage":
            given |= latent_for(kinds, given)
        elif kind == "KSampler":
            given["cfg"] = 2.5
        for name, value in given.items():
            if isinstance(value, str) and not learns:
                for theirs, ours in (("my_dog", "dog2"), ("my_cat", "cat"), ("a bedroom", "the snow"), ("sks dog", "my duck")):
                    value = value.replace(theirs, ours)
                given[name] = value
    return prompt


def thumbnail(pictures: list[Image.Image]) -> Image.Image:
    """Fill a square with pictures of one shape: wide ones below each other, square ones two by two."""
    width, height = pictures[0].size
    columns = 1 if width > height or len(pictures) < 4 else 2
    rows = max(1, round(columns * width / height))
    tiles = [
        ImageOps.fit(p.convert("RGB"), (SIDE // columns, SIDE // rows), Image.Resampling.LANCZOS, centering=(0, 0))
        for p in pictures[: columns * rows]
    ]
    square = Image.new("RGB", (SIDE, SIDE), "white")
    for i, tile in enumerate(tiles):
        square.paste(tile, (i % columns * (SIDE // columns), i // columns * (SIDE // rows)))
    return square


def main(checkout: str, *names: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(host(Path(checkout).resolve()), Path(folder))
        try:
            for place, concept in (("my_dog", "dog2"), ("my_cat", "cat"), ("my_photos/dog2", "dog2"), ("my_photos/cat", "cat")):
                draw_photos(server.folder / "input" / place, concept)
            for file in sorted((PACK / "workflows" / "api").glob("*.json")):
                if names and not file.stem.startswith(names):
                    continue
                prompt = bring(server, json.loads(file.read_text(encoding="utf-8")))
                outputs = server.run(prompt, 3600)
                kinds = ("SaveImage", "PreviewImage", "CIDMBankTable", "CIDMPresence", "CIDMWasserstein", "CIDMDiversity")
                shown = next(outputs[key] for kind in kinds for key in sorted(prompt) if prompt[key]["class_type"] == kind)
                pictures = []
                for image in shown["images"]:
                    root = server.folder / {"output": "output", "temp": "temp/temp"}[image["type"]]
                    pictures.append(Image.open(root / image["subfolder"] / image["filename"]))
                thumbnail(pictures).save(PACK / "workflows" / f"{file.stem}.jpg", quality=88)
                print(file.stem, flush=True)
        finally:
            server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
