"""How well a Doodle obeys captions: 500 sampled captions, read by a classifier trained on renderings."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...backbone import Backbone, TransformerBackbone
from ...bank.files import write_atomically
from ...bank.formats import write_picture
from ...engines.diffusers import load_any
from ...measure.report import from_pixels, to_pixels
from ...painting.sampling import sample
from ...tokens import Text, join, read_plain
from ..figures import COLOURS, FIGURES, plain
from ..style import PLACES
from ..world import Scene, arrange, caption, render
from .data import rendered
from .judge import Judge, learn_judge, verdict
from .loop import Session


def scene_to_paint(seed: int, things: int) -> Scene:
    """A flat scene of plain things in named colours: everything its caption says can be checked."""
    rng = np.random.default_rng((seed, 53))
    kinds, colours = (rng.choice(list(names), things, replace=False) for names in (FIGURES, COLOURS))
    looks = [plain(str(k), COLOURS[str(c)]) for k, c in zip(kinds, colours, strict=True)]
    words = [f"{c} {k}" for k, c in zip(kinds, colours, strict=True)]
    return Scene(arrange(looks, words, rng), str(rng.choice(PLACES)), seed=seed)


@torch.no_grad()
def paint_captions(
    backbone: Backbone | TransformerBackbone, captions: list[str], steps: int = 25, guidance: float = 5.0, batch: int = 25
) -> Tensor:
    """Pictures ``[N, 3, 128, 128]`` of captions by a Doodle, each from its own seed; on the CPU."""
    painted: dict[int, Tensor] = {}
    nothing = read_plain(backbone, "")
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        shape = backbone.family.latent_shape(backbone.family.size, backbone.family.size)
        noise = torch.randn(len(part), *shape, generator=torch.Generator().manual_seed(start)).to(backbone.device)
        for rows, text in by_length([read_plain(backbone, words) for words in part]):
            latents = sample(backbone, text, nothing.expand(len(rows)), noise[rows], steps=steps, guidance=guidance)
            painted |= {start + row: picture for row, picture in zip(rows, backbone.decode_latent(latents).cpu(), strict=True)}
    return torch.stack([painted[i] for i in range(len(captions))])


def by_length(texts: Sequence[Text]) -> list[tuple[list[int], Text]]:
    """Texts of one length as one batch, and which of all they are."""
    rows: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text.states.shape[2], []).append(row)
    return [(some, join([texts[row] for row in some])) for some in rows.values()]


def judge(options: argparse.Namespace) -> None:
    """Trains the classifier, paints every caption, and prints how often class, colour and place are right."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(0)
    classifier = Judge()
    learn_judge(classifier, rendered(options.folder, options.pictures, options.workers)[0], Session(options.folder), steps=options.steps)
    scenes = [scene_to_paint(seed, 1 + seed % 2) for seed in range(options.captions)]
    held_out = from_pixels(np.stack([render(s)[0] for s in scenes]))
    pictures = paint_captions(load_any(options.base), [caption(s, np.random.default_rng(i)) for i, s in enumerate(scenes)])
    figures = {
        "captions": options.captions,
        "sampled": asdict(verdict(classifier, pictures, scenes)),
        "renderings": asdict(verdict(classifier, held_out, scenes)),
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        write_atomically(json.dumps(figures, indent=2).encode(), options.json)
    if options.sheet:
        tiles = to_pixels(pictures[:96]).reshape(-1, 12, 128, 128, 3).transpose(0, 2, 1, 3, 4)
        write_picture(Image.fromarray(tiles.reshape(-1, 12 * 128, 3)), options.sheet)
