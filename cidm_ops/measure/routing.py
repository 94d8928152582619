"""What a prompt takes from a bank, before any model is there: whose words are in it, how strongly, and what the text encoder reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..bank.bank import Bank
from ..grammar import article
from ..painting.compose import ConceptMix
from ..tokens import WORD
from .interval import Interval, mean_interval, several
from .pictures import GREY, INK, LINE, MARGIN, PAPER, RED, SERIES, Colour, fit_text, font, heading, width_of, wrap_text

WIDE = 760


def routing_preview(bank: Bank, prompt: str) -> tuple[Image.Image, str]:
    """The prompt with the words of each concept in its colour, a bar per concept, and the text that is encoded; the same in words.

    Raises ``ValueError`` for two strengths of one concept. A ``<word>`` that no concept has is shown, not refused.
    """
    parts = bank.vocabulary.parts(prompt)
    unknown = list(dict.fromkeys(text for text, owner in parts if owner == ""))
    said = bank.read("".join(text for text, owner in parts if owner != ""))
    text = WORD.sub(lambda m: bank.headers[m[0][1:-1]]["class_word"] if m[0][1:-1] in bank.headers else m[0], said.text)
    encoded = " ".join(text.split())
    colours = {name: SERIES[i % len(SERIES)] for i, name in enumerate(said.strengths)}
    lines = [f"{bank.title(name)}: {strength:g}" for name, strength in said.strengths.items()]
    lines += [f"{word}: no concept of this bank has it, the prompt would be refused" for word in unknown]
    text = "\n".join([*(lines or ["no concept in the prompt"]), f"encoded: {encoded}"])

    pills = _laid_out(parts, colours)
    read = wrap_text(encoded or "nothing", 14, WIDE - 2 * MARGIN)
    first = max(pills[-1][1] + 50 if pills else 0, MARGIN + 50) + 6
    second = first + 44 + 30 * max(1, len(said.strengths)) + 24 * bool(unknown)
    sheet = Image.new("RGB", (WIDE, second + 46 + 22 * len(read) + MARGIN - 8), PAPER)
    pen = ImageDraw.Draw(sheet)
    heading(pen, "The prompt", [])
    for x, y, word, colour in pills:
        if colour != INK:
            pen.rounded_rectangle((x - 5, y - 2, x + width_of(word, 17) + 5, y + 24), 6, _pale(colour))
        pen.text((x, y + 11), word, colour, font(17), anchor="lm")
    _title(pen, "Concepts in it", first)
    _draw_strengths(pen, bank, said.strengths, colours, first + 50)
    if unknown:
        none = f"no concept of bank {bank.folder.name} has {', '.join(unknown)}: the prompt would be refused"
        pen.text((MARGIN, second - 18), fit_text(none, 13, WIDE - 2 * MARGIN), RED, font(13), anchor="lm")
    _title(pen, "What the text encoder reads", second + 4)
    for i, line in enumerate(read):
        pen.text((MARGIN, second + 52 + 22 * i), line, INK, font(14), anchor="lm")
    return sheet, text


def routing_table(names: Sequence[str], mixtures: Sequence[ConceptMix]) -> Tensor:
    """How much of each concept every prompt takes: ``[prompts, concepts]``, means over the cross-attention layers."""
    found = torch.zeros(len(mixtures), len(names))
    for row, mixture in zip(found, mixtures, strict=True):
        for concept, weights in zip(mixture.concepts, mixture.weights.T, strict=True):
            row[names.index(concept.name)] = float(weights.mean())
    return found


@dataclass(frozen=True)
class RoutingScore:
    """The score says what prompts take from a bank: ``weights [prompts, concepts]``, the ``share [prompts]`` of their size that goes to
    concepts which the prompt names, and the mean share over prompts that name any; None where none does.
    """

    prompts: Sequence[str]
    names: Sequence[str]
    weights: Tensor
    share: Tensor
    mean: Interval | None


def score_routing(prompts: Sequence[str], names: Sequence[str], mixtures: Sequence[ConceptMix]) -> RoutingScore:
    """Scores the mixtures of ``prompts`` on a bank of concepts ``names``."""
    weights = routing_table(names, mixtures)
    size = weights.abs()
    named = [list(mixture.strengths) for mixture in mixtures]
    right = torch.stack([size[i, [names.index(n) for n in own]].sum() for i, own in enumerate(named)])
    share = right / size.sum(1).clamp(min=1e-12)
    spoken = [i for i, own in enumerate(named) if own]
    mean = mean_interval(share[spoken], several(len(spoken), "prompt")) if spoken else None
    return RoutingScore(prompts, names, weights, share, mean)


def _draw_strengths(pen: ImageDraw.ImageDraw, bank: Bank, strengths: Mapping[str, float], colours: dict[str, Colour], y: int) -> None:
    """Draw a row for each concept of a prompt from ``y`` on: its name, its class word, and a bar as long as it is strong."""
    top = max([abs(s) for s in strengths.values()] + [1.0])
    for name, strength in strengths.items():
        length = round(380 * abs(strength) / top)
        pen.text((MARGIN, y), fit_text(f"<{name}>", 15, 130), colours[name], font(15), anchor="lm")
        if word := bank.headers[name]["class_word"]:
            pen.text((MARGIN + 140, y), fit_text(article(word), 13, 110), GREY, font(13), anchor="lm")
        pen.rectangle((MARGIN + 260, y - 7, MARGIN + 260 + max(1, length), y + 7), colours[name])
        pen.text((MARGIN + 270 + length, y), f"{strength:g}", INK, font(13), anchor="lm")
        y += 30
    if not strengths:
        pen.text((MARGIN, y), "none: the plain model paints", GREY, font(14), anchor="lm")


def _laid_out(parts: list[tuple[str, str | None]], colours: dict[str, Colour]) -> list[tuple[int, int, str, Colour]]:
    """Lay out the words of the prompt, line after line."""
    x, y, placed = MARGIN, MARGIN + 38, []
    for text, owner in parts:
        colour = INK if owner is None else RED if owner == "" else colours[owner]
        for i, piece in enumerate(text.split(" ") if owner is None else [text]):
            x += 6 if i and x > MARGIN else 0
            word = fit_text(piece, 17, WIDE - 2 * MARGIN)
            gap = 7 if owner is not None else 0
            if x > MARGIN and x + width_of(word, 17) + gap > WIDE - MARGIN:
                x, y = MARGIN, y + 32
            if word:
                placed.append((x + gap, y, word, colour))
            x += width_of(word, 17) + 2 * gap
    return placed


def _pale(colour: Colour) -> Colour:
    red, green, blue = (round(255 - (255 - c) * 0.16) for c in colour)
    return red, green, blue


def _title(pen: ImageDraw.ImageDraw, title: str, y: int) -> None:
    pen.line((MARGIN, y, WIDE - MARGIN, y), LINE)
    pen.text((MARGIN, y + 10), title, INK, font(14))
