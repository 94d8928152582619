"""What a person looks at: a contact sheet and pages of HTML that need nothing else."""

import base64
import html
import io
import math
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..bank.files import write_atomically
from ..text_table import text_table
from ..tokens import concept_words
from ..training.captions import concept_captions
from ..training.dataset import Dataset
from .interval import Interval

Row = tuple[str, Tensor]  # a label and pictures [N, 3, H, W] in [-1, 1]


def to_pixels(pictures: Tensor) -> np.ndarray:
    """``[N, 3, H, W]`` in [-1, 1] to ``[N, H, W, 3]`` uint8."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def from_pixels(pictures: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """``[N, H, W, 3]`` uint8 to ``[N, 3, H, W]`` in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


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
    captions, warnings = concept_captions(data.captions, class_word, concept_words(name, class_word), name)
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


@dataclass(frozen=True)
class Section:
    """A score as people read it: the figure with its interval, what it is, a table, and pictures."""

    title: str
    about: str = ""
    figure: Interval | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    pictures: Sequence[Image.Image] = ()

    def text(self) -> str:
        """The figure and the table in plain words."""
        head = self.title
        if self.figure is not None:
            head += f": {self.figure}" + (f", over {self.figure.over}" if self.figure.over else "")
        cells = [self.columns, *([_text(value) for value in row] for row in self.rows)]
        return f"{head}\n{text_table(cells)}" if self.rows else head


STYLE = """
:root{--ink:#28282f;--grey:#767a86;--line:#e2e4ea;--blue:#3474ba;--wash:#f4f6fb;color-scheme:light}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:var(--wash);margin:0;padding:2.5rem 1rem 4rem}
main{max-width:1180px;margin:auto}
h1{font-size:2rem;line-height:1.2;letter-spacing:-.02em;margin:0 0 .5rem}
h2{font-size:1.25rem;letter-spacing:-.01em;margin:0}
p{margin:.4rem 0 0;max-width:80ch;color:var(--grey)}
header{margin:0 0 1.5rem}
.note{border-left:4px solid #d6782c;background:#fff;padding:.6rem 1rem;color:var(--ink);border-radius:0 8px 8px 0;margin-top:1rem}
nav{display:flex;flex-wrap:wrap;gap:.75rem;margin:1.5rem 0}
nav a{flex:1 1 170px;text-decoration:none;color:inherit;background:#fff;padding:.9rem 1.1rem;border:1px solid var(--line);
border-radius:12px}
nav a:hover{border-color:var(--blue)}
nav span{display:block;font-size:.85rem;color:var(--grey)}
nav b{display:block;font-size:1.7rem;font-weight:600;line-height:1.25;color:var(--blue);font-variant-numeric:tabular-nums}
section{background:#fff;border:1px solid var(--line);border-radius:14px;padding:1.4rem 1.6rem 1.6rem;margin:0 0 1.25rem}
.head{display:flex;justify-content:space-between;align-items:baseline;gap:1.5rem;flex-wrap:wrap}
.figure{font-size:1.35rem;font-weight:600;color:var(--blue);font-variant-numeric:tabular-nums;white-space:nowrap}
.figure small{font-size:.85rem;font-weight:400;color:var(--grey);margin-left:.5rem}
.scroll{overflow-x:auto;margin:1rem 0 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
td,th{padding:.38rem .9rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--grey);font-size:.82rem}
tr:last-child td{border-bottom:0}
tbody tr:hover{background:var(--wash)}
td:first-child,th:first-child{text-align:left;padding-left:0}
img{display:block;max-width:100%;height:auto;margin:1.1rem 0 0;border-radius:6px}
@media print{body{background:#fff;padding:0}section{break-inside:avoid}}
"""


def write_html(file: Path, title: str, sections: Sequence[Section], note: str = "", warning: str = "") -> None:
    """A self-contained page, written whole or not at all: every section's figure at a glance, then each with its table and pictures."""
    glance = [(i, s) for i, s in enumerate(sections) if s.figure is not None]
    tiles = "".join(f'<a href="#s{i}"><span>{_safe(s.title)}</span><b>{_text(s.figure.value)}</b></a>' for i, s in glance if s.figure)
    page = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{_safe(title)}</title><style>{STYLE}</style><main><header><h1>{_safe(title)}</h1>",
        f"<p>{_safe(note)}</p>" if note else "",
        f'<div class="note">{_safe(warning)}</div>' if warning else "",
        f"</header><nav>{tiles}</nav>" if len(glance) > 1 else "</header>",
        *(_section(i, s) for i, s in enumerate(sections)),
        "</main></html>\n",
    ]
    write_atomically("".join(page).encode(), file)


def _section(number: int, section: Section) -> str:
    figure = ""
    if (found := section.figure) is not None:
        extent = (
            "" if math.isnan(found.low) else f"{100 * found.level:.0f} % in {found.low:.3f} .. {found.high:.3f}, over {_safe(found.over)}"
        )
        figure = f'<div class="figure">{_text(found.value)}<small>{extent}</small></div>'
    head = "".join(f"<th>{_safe(c)}</th>" for c in section.columns)
    body = "".join("<tr>" + "".join(f"<td>{_safe(_text(v))}</td>" for v in row) + "</tr>" for row in section.rows)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>' if section.rows else ""
    pictures = "".join(_picture(p, section.title) for p in section.pictures)
    about = f"<p>{_safe(section.about)}</p>" if section.about else ""
    return f'<section id="s{number}"><div class="head"><h2>{_safe(section.title)}</h2>{figure}</div>{about}{table}{pictures}</section>'


def _picture(picture: Image.Image, title: str) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img alt="{_safe(title)}" {size} src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'


def _safe(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def _text(value: object) -> str:
    """Three decimals, or three digits where that would show nothing; nothing at all for nan."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"
