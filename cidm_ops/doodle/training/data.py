"""The training set of the Doodle model: pictures, captions and token ids, rendered once and kept on disk."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ...bank.files import write_atomically
from ..world import SIZE, caption, random_scene, render

CHUNK = 1000
WORDINGS = 4


def _render_chunk(start: int) -> tuple[np.ndarray, list[list[str]]]:
    pictures = np.empty((CHUNK, SIZE, SIZE, 3), np.uint8)
    captions = []
    for i in range(CHUNK):
        scene = random_scene(start + i)
        pictures[i] = render(scene)[0]
        captions.append([caption(scene, np.random.default_rng((start + i, w))) for w in range(WORDINGS)])
    return pictures, captions


def rendered(folder: Path, count: int, workers: int) -> tuple[np.ndarray, list[list[str]]]:
    """Pictures ``[count, 128, 128, 3]`` uint8 (memory-mapped) and captions ``[count][4]`` of scenes ``0 .. count-1``.

    Rendered into ``folder`` the first time, a chunk at a time; later calls open the files.
    """
    picture_file, caption_file = folder / f"pictures-{count}.npy", folder / f"captions-{count}.txt"
    if not caption_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pictures = np.lib.format.open_memmap(picture_file, "w+", np.uint8, (count, SIZE, SIZE, 3))
        lines = []
        with ProcessPoolExecutor(workers) as pool:
            for start, (part, words) in zip(range(0, count, CHUNK), pool.map(_render_chunk, range(0, count, CHUNK)), strict=True):
                pictures[start : start + CHUNK] = part[: count - start]
                lines += ["\t".join(w) for w in words][: count - start]
        pictures.flush()
        write_atomically("\n".join(lines).encode(), caption_file)
    captions = [line.split("\t") for line in caption_file.read_text(encoding="utf-8").split("\n")]
    return np.load(picture_file, mmap_mode="r"), captions
