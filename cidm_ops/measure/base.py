"""How well the shipped base model obeys captions: 500 sampled captions, read by a classifier trained on renderings."""

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..doodle.data import rendered
from ..doodle.figures import COLOURS, FIGURES, plain
from ..doodle.judge import Judge, learn_judge, verdict
from ..doodle.style import PLACES
from ..doodle.vision import pixels
from ..doodle.world import Scene, arrange, caption, render
from ..engines.diffusers import load
from ..painting.sampling import sample
from ..tokens import encode_layerwise
from .report import to_pixels


def scene_to_paint(seed: int, things: int) -> Scene:
    """A flat scene of plain things in named colours: everything its caption says can be checked."""
    rng = np.random.default_rng((seed, 53))
    kinds, colours = (rng.choice(list(names), things, replace=False) for names in (FIGURES, COLOURS))
    looks = [plain(str(k), COLOURS[str(c)]) for k, c in zip(kinds, colours, strict=True)]
    words = [f"{c} {k}" for k, c in zip(kinds, colours, strict=True)]
    return Scene(arrange(looks, words, rng), str(rng.choice(PLACES)), seed=seed)


def paint_captions(captions: list[str], steps: int = 25, guidance: float = 5.0, batch: int = 25) -> Tensor:
    """Pictures ``[N, 3, 128, 128]`` of captions by the shipped model, each from its own seed."""
    backbone = load("doodle")
    out = []
    with torch.no_grad():
        nothing = encode_layerwise(backbone, [""], {})
        for start in range(0, len(captions), batch):
            part = captions[start : start + batch]
            noise = torch.randn(len(part), 4, 16, 16, generator=torch.Generator().manual_seed(start))
            text = encode_layerwise(backbone, part, {})
            latents = sample(backbone, text, nothing.expand(len(part)), noise, steps=steps, guidance=guidance)
            out.append(backbone.decode_latent(latents))
    return torch.cat(out)


def main(arguments: list[str] | None = None) -> None:
    """``cidm doodle judge``."""
    parser = argparse.ArgumentParser(prog="cidm doodle judge", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the folder of `cidm doodle train`: its renderings teach the classifier")
    parser.add_argument("--captions", type=int, default=500, help="half with one thing, half with two")
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the classifier")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="save the pictures as one sheet")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(0)
    judge = Judge()
    learn_judge(judge, rendered(args.folder, args.pictures, args.workers)[0], args.folder, steps=args.steps)
    scenes = [scene_to_paint(seed, 1 + seed % 2) for seed in range(args.captions)]
    held_out = pixels(np.stack([render(s)[0] for s in scenes]))
    pictures = paint_captions([caption(s, np.random.default_rng(i)) for i, s in enumerate(scenes)])
    figures = {
        "captions": args.captions,
        "sampled": asdict(verdict(judge, pictures, scenes)),
        "renderings": asdict(verdict(judge, held_out, scenes)),
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))
    if args.sheet:
        tiles = to_pixels(pictures[:96]).reshape(-1, 12, 128, 128, 3).transpose(0, 2, 1, 3, 4)
        Image.fromarray(tiles.reshape(-1, 12 * 128, 3)).save(args.sheet)
