"""What a bank holds, to look at: a table of all concepts and a card of one."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors import SafetensorError, safe_open

from ..bank.bank import Bank
from ..bank.concept import Concept
from ..bank.header import RESIDUALS, read_preview
from ..bank.thumbnails import decoded
from ..models.registry import family_of
from ..printable import one_line
from .pictures import GREY, INK, LINE, MARGIN, PAPER, RED, SERIES, bars, fit_text, font, heading, width_of, wrap_text

MOST = 200  # rows of a table
ROW = 68
WIDEST = 300  # pixels of a column


def rank_of(file: Path) -> int:
    """The largest rank in a concept file, from its header alone."""
    with safe_open(file, "pt") as f:
        return max((f.get_slice(key).get_shape()[0] for key in f.keys() if key.endswith(".lora_down.weight")), default=0)  # noqa: SIM118


def picture_of(preview: bytes, name: str, side: int) -> Image.Image:
    """A thumbnail in a square, or the concept's first letter on a colour of its own."""
    if preview:
        try:
            seen = decoded(preview, side)
            square = Image.new("RGB", (side, side), (247, 248, 250))
            square.paste(seen, ((side - seen.width) // 2, (side - seen.height) // 2))
            return square
        except ValueError:
            pass  # `verify` says why
    colour = SERIES[sum(name.encode()) % len(SERIES)]
    pale = tuple(round(255 - (255 - c) * 0.22) for c in colour)
    square = Image.new("RGB", (side, side), (pale[0], pale[1], pale[2]))
    ImageDraw.Draw(square).text((side / 2, side / 2), name[:1].upper(), colour, font(side // 2), anchor="mm")
    return square


def bank_table(bank: Bank) -> Image.Image:
    """A row per concept in the order learned, the first 200 of them; damaged files in red with the reason."""
    bank = Bank(bank.folder)  # others may have renamed or removed since it was opened
    titles = ["concept", "a kind of", "words and triggers", "task", "base", "rank", "size", "author, licence"]
    shown = {name: entry for name in bank.names[:MOST] if (entry := _row_of(bank, name))}
    rows = [texts for texts, _ in shown.values()]
    sizes = [15, 13, 13, 13, 13, 13, 13, 13]
    widths = [min(WIDEST, max([width_of(titles[i], 12), *(width_of(row[i], sizes[i]) for row in rows)]) + 24) for i in range(len(titles))]
    wide = max(2 * MARGIN + ROW + sum(widths), 640)
    said = f"{len(bank.names)} concepts" + (f", the first {MOST} shown" if len(bank.names) > MOST else "")
    said += f", {len(bank.damaged)} damaged" if bank.damaged else ""
    head = MARGIN + 28 + 18 + 36
    sheet = Image.new("RGB", (wide, head + ROW * (len(rows) + min(len(bank.damaged), MOST)) + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    heading(pen, f"Bank {bank.folder.name}", [said])
    starts = [MARGIN + ROW + sum(widths[:i]) for i in range(len(widths))]
    for x, title in zip(starts, titles, strict=True):
        pen.text((x, head - 16), title, GREY, font(12), anchor="lm")
    y = head
    for name, (row, preview) in shown.items():
        pen.line((MARGIN, y, wide - MARGIN, y), LINE)
        sheet.paste(picture_of(preview, name, ROW - 12), (MARGIN, y + 6))
        for i, (x, text) in enumerate(zip(starts, row, strict=True)):
            line, colour = fit_text(text, sizes[i], widths[i] - 20), INK if i in (0, 1, 2) else GREY
            pen.text((x, y + ROW / 2), line, colour, font(sizes[i]), anchor="lm")
        y += ROW
    for name, reason in list(bank.damaged.items())[:MOST]:
        pen.line((MARGIN, y, wide - MARGIN, y), LINE)
        _draw_damaged(pen, name, reason, y, wide)
        y += ROW
    return sheet


def _row_of(bank: Bank, name: str) -> tuple[list[str], bytes] | None:
    """The texts of a concept's row and its preview; ``None`` if its file went while the table was made."""
    header, file = bank.headers[name], bank.folder / f"{name}.safetensors"
    try:
        about, size, rank, preview = ", ".join(filter(None, _about(file))), file.stat().st_size, rank_of(file), read_preview(file)
    except (OSError, ValueError, RuntimeError, SafetensorError):
        if file.exists():
            raise
        return None
    words = ", ".join([*header["words"], *header["triggers"]]) or ("by Infusion" if header["method"] == RESIDUALS else "")
    base = f"{header['architecture']} {header['fingerprint'][:6]}"
    texts = [f"<{name}>", header["class_word"], words, str(header["task"]), base, str(rank or "none"), f"{size / 1e6:.2f} MB", about]
    return [one_line(text) for text in texts], preview


def _draw_damaged(pen: ImageDraw.ImageDraw, name: str, reason: str, y: int, wide: int) -> None:
    """Draw the row of a file that cannot be opened, in red with the reason."""
    x = MARGIN + ROW
    pen.rounded_rectangle((MARGIN, y + 6, MARGIN + ROW - 12, y + ROW - 6), 4, (250, 232, 229))
    pen.text((MARGIN + (ROW - 12) / 2, y + ROW / 2), "!", RED, font(30), anchor="mm")
    pen.text((x, y + 20), fit_text(name, 15, wide - x - MARGIN), RED, font(15), anchor="lm")
    for i, line in enumerate(wrap_text(reason, 12, wide - x - MARGIN)[:2]):
        pen.text((x, y + 40 + 16 * i), line, RED, font(12), anchor="lm")


def _about(file: Path) -> tuple[str, str]:
    with safe_open(file, "pt") as f:
        metadata = f.metadata() or {}
    return metadata.get("modelspec.author", ""), metadata.get("modelspec.license", "")


@torch.no_grad()
def concept_card(concept: Concept, file: Path) -> Image.Image:
    """Thumbnail, texts, training settings, and how much was learned in each layer: ``||delta W||_F`` from the factors."""
    side, wide = 224, 900
    x = MARGIN + side + 28
    lines = [pair for key, text in _facts(concept, file) if text for pair in _hanging(key, one_line(text), wide - x - 90 - MARGIN)]
    settings = [
        one_line(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
        for key, value in concept.training.items()
        if _plain(value)
    ]
    short = family_of(concept.architecture).short
    norms = [(short(n), f.norm()) for n, f in concept.all_factors.items()]
    norms += [(short(n), float(r.norm())) for n, r in concept.residuals.items()]
    per_column = -(-len(norms) // 2)
    said = wrap_text(",  ".join(settings), 12, wide - 2 * MARGIN)
    top = max(MARGIN + 44 + 20 * len(lines), MARGIN + side) + 24
    below = top + (34 + 18 * len(said) + 14 if said else 0)
    sheet = Image.new("RGB", (wide, below + 36 + 20 * per_column + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    sheet.paste(picture_of(concept.preview, concept.name, side), (MARGIN, MARGIN))
    pen.text((x, MARGIN - 4), fit_text(f"<{concept.name}>", 26, wide - x - MARGIN), INK, font(26))
    for i, (key, line) in enumerate(lines):
        pen.text((x, MARGIN + 52 + 20 * i), key, GREY, font(13), anchor="lm")
        pen.text((x + 90, MARGIN + 52 + 20 * i), line, INK, font(13), anchor="lm")
    if said:
        _section(pen, "Training", top, wide)
        for i, line in enumerate(said):
            pen.text((MARGIN, top + 32 + 18 * i), line, GREY, font(12))
    _section(pen, "How much was learned in each layer (Frobenius norm)", below, wide)
    half, scale = (wide - 2 * MARGIN) // 2, max([value for _, value in norms], default=1.0)
    for column in range(2):
        part = norms[column * per_column : (column + 1) * per_column]
        bars(pen, MARGIN + column * half, below + 34, part, 210, half - 210 - 60, scale)
    return sheet


def _facts(concept: Concept, file: Path) -> list[tuple[str, str]]:
    """List what the card says of a concept, line by line; an empty text is left out."""
    ranks = sorted({f.rank for f in concept.all_factors.values()})
    tokens = ", ".join(f"{e} {' x '.join(map(str, t.shape))}" for e, t in concept.tokens.items())
    return [
        ("a kind of", concept.class_word),
        ("words", " ".join(concept.words)),
        ("triggers", ", ".join(concept.triggers)),
        ("place", f"{concept.task} in the order learned"),
        ("base", f"{concept.architecture}, {concept.fingerprint}"),
        ("factors", f"{len(concept.all_factors)} layers of rank {', '.join(map(str, ranks))}" if ranks else ""),
        ("Infusion", f"residuals of {sum(r.numel() for r in concept.residuals.values())} numbers" if concept.residuals else ""),
        ("token rows", tokens),
        ("file", f"{file.name}, {file.stat().st_size / 1e6:.2f} MB"),
        *concept.about.items(),
    ]


def _hanging(key: str, text: str, width: float) -> list[tuple[str, str]]:
    return [(key if i == 0 else "", line) for i, line in enumerate(wrap_text(text, 13, width)[:4])]


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value not in ("", 0)


def _section(pen: ImageDraw.ImageDraw, title: str, y: int, wide: int) -> None:
    pen.line((MARGIN, y, wide - MARGIN, y), LINE)
    pen.text((MARGIN, y + 8), title, INK, font(14))
