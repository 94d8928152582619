"""Pictures for a blind reading: whether a person puts each to the right individual, who sees one rendering of every one of them."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..bank.bank import Bank
from ..bank.files import write_atomically
from ..bank.formats import write_picture
from ..doodle.concepts import CONCEPTS, examples
from ..measure.pictures import INK, PAPER, font
from ..measure.report import to_pixels
from .doodle import DoodleBench, pictured

SIDE, GAP, LABEL, COLUMNS = 256, 8, 22, 8


def write_strips(bench: DoodleBench, bank: Bank, folder: Path, seed: int = 0) -> dict[str, str]:
    """Write four pictures of each of Doodle's concepts that a bank has, shuffled and numbered (``pictures.png``), one rendering of each
    concept under a letter (``individuals.png``), and which letter each number is (``key.json``), which is returned.

    Raises ``ValueError`` for a bank with fewer than two of them.
    """
    names = [name for name in bank.names if name in CONCEPTS]
    if len(names) < 2:
        raise ValueError(f"bank {bank.folder.name!r} has {len(names)} of Doodle's concepts: learn two of {', '.join(CONCEPTS)} at least")
    letters = {name: chr(ord("A") + i) for i, name in enumerate(names)}
    painted = torch.cat([bench.paint(bank, name, f"<{name}>", seeds=1) for name in names])
    whose = [name for name in names for _ in range(len(painted) // len(names))]
    order = np.random.default_rng((seed, 197)).permutation(len(painted))
    key = {str(place + 1): letters[whose[i]] for place, i in enumerate(order)}
    renderings = torch.cat([pictured(examples(CONCEPTS[name], 1, seed=1)) for name in names])
    write_picture(numbered(painted[torch.from_numpy(order)], list(key)), folder / "pictures.png")
    write_picture(numbered(renderings, list(letters.values())), folder / "individuals.png")
    write_atomically(
        json.dumps({"key": key, "names": {letter: name for name, letter in letters.items()}}, indent=1).encode(), folder / "key.json"
    )
    return key


def numbered(pictures: Tensor, labels: list[str]) -> Image.Image:
    """Pictures ``[N, 3, H, W]`` in [-1, 1] in rows, a label over each."""
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + LABEL + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (pixels, label) in enumerate(zip(to_pixels(pictures), labels, strict=True)):
        x, y = GAP + i % COLUMNS * (SIDE + GAP), i // COLUMNS * (SIDE + LABEL + GAP)
        pen.text((x, y + LABEL // 2), label, INK, font(16), anchor="lm")
        sheet.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y + LABEL))
    return sheet
