"""What a person looks at: a contact sheet and a page of HTML that needs nothing else."""

import base64
import html
import io
import random
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..run.captions import concept_captions
from ..run.dataset import Dataset
from ..tokens import concept_words

Row = tuple[str, Tensor]  # a label and pictures [N, 3, H, W] in [-1, 1]


def to_pixels(pictures: Tensor) -> np.ndarray:
    """``[N, 3, H, W]`` in [-1, 1] to ``[N, H, W, 3]`` uint8."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def contact_sheet(rows: Sequence[Row], side: int = 128, label: int = 250) -> Image.Image:
    """One labelled row of pictures under the other."""
    columns = max(len(pictures) for _, pictures in rows)
    sheet = Image.new("RGB", (label + columns * (side + 4), len(rows) * (side + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for y, (text, pictures) in enumerate(rows):
        pen.multiline_text((8, y * (side + 4) + side // 2 - 18), text, fill=(40, 40, 48), font=font, spacing=6)
        for x, pixels in enumerate(to_pixels(pictures)):
            tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(tile, (label + x * (side + 4), y * (side + 4)))
    return sheet


def dataset_sheet(data: Dataset, name: str, class_word: str, seed: int = 0, side: int = 256) -> tuple[Tensor, list[str]]:
    """The dataset as the trainer sees it, ``[1, H, W, 3]`` in [0, 1], and what may go wrong: crops, dimmed where nothing is learned, with
    their captions.
    """
    captions, warnings = concept_captions(data.captions, class_word, concept_words(name, class_word))
    columns = min(4, len(data))
    below = 64
    sheet = Image.new("RGB", (columns * (side + 8), -(-len(data) // columns) * (side + below)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, caption in enumerate(captions):
        picture, mask = data.draw(i, False, random.Random(f"{seed}/{i}"))
        if mask is not None:
            picture = (picture + 1) * (0.25 + 0.75 * mask) - 1
        tile = ImageOps.contain(Image.fromarray(to_pixels(picture[None])[0]), (side, side), Image.Resampling.LANCZOS)
        x, y = i % columns * (side + 8), i // columns * (side + below)
        sheet.paste(tile, (x, y))
        times = f" x {data.repeats[i]}" if data.repeats[i] > 1 else ""
        text = [f"{data.names[i]}{times}, {picture.shape[2]} x {picture.shape[1]}", *textwrap.wrap(caption, side // 7)[:3]]
        pen.multiline_text((x, y + tile.height + 2), "\n".join(text), fill=(40, 40, 48), font=font)
    return torch.from_numpy(np.asarray(sheet, np.float32) / 255)[None], data.remarks(class_word) + warnings


def write_html(file: Path, title: str, sheet: Image.Image, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str) -> None:
    """A self-contained page: the sheet and a table of figures."""
    data = io.BytesIO()
    sheet.save(data, "PNG")
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_text(v))}</td>" for v in row) + "</tr>" for row in rows)
    file.write_text(
        f"""<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font:16px system-ui;margin:2em auto;max-width:{sheet.width}px;color:#28283a}}
table{{border-collapse:collapse;margin:1em 0}}td,th{{padding:.3em 1em;text-align:right;border-bottom:1px solid #ddd}}
td:first-child,th:first-child{{text-align:left}}img{{max-width:100%}}</style>
<h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>
<table><tr>{head}</tr>{body}</table>
<img alt="contact sheet" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">
""",
        encoding="utf-8",
    )


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
