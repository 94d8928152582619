"""The figures of a Doodle: what its latents keep, how sure its judge is, what its tower tells apart, and what its base paints."""

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from ...bank.files import write_atomically
from ...bank.formats import write_picture
from ...engines.diffusers import fastest_device, load_any
from ...engines.parts import PARTS, SHIPPED, Reading, judge_file, labels_of, load_judge, right_parts
from ...engines.towers import load_tower
from ...measure.report import contact_sheet, from_pixels
from ..concepts import CONCEPTS, examples
from ..files import vae_state
from ..world import Scene, render
from .autoencoder import pass_through
from .base import autoencoder_file, result_file
from .described import described_scene, one_described
from .obedience import paint_captions
from .parts import HELD_OUT, accuracy, held_out_accuracy, lone_individual
from .twins import told_apart

log = logging.getLogger("cidm.doodle")


def measure(options: argparse.Namespace) -> None:
    """Print the figures that were asked for, and keep them in a file if one is named."""
    figures = MEASURED[options.what](options)
    print(json.dumps(figures, indent=1))
    if options.json:
        write_atomically(json.dumps(figures, indent=1).encode(), options.json)


def psnr(reconstructed: Tensor, pictures: Tensor) -> Tensor:
    """Peak signal to noise ratio of pictures ``[N, 3, H, W]`` in [-1, 1] in dB, ``[N]``."""
    error = (reconstructed.clamp(-1, 1) - pictures).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error)


@torch.no_grad()
def reconstruct(vae: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """What an autoencoder makes of pictures ``[N, 3, H, W]`` in [-1, 1]; on the CPU."""
    parts = [vae.decode(vae.encode(part.to(vae.device)).latents).sample.float().cpu() for part in pictures.split(32)]
    return torch.cat(parts).clamp(-1, 1)


def linear_bound(pictures: Tensor, held_out: Tensor, numbers: int, cell: int = 8) -> Tensor:
    """PSNR ``[N]`` of ``held_out [N, 3, H, W]`` in a linear code of each cell by so many ``numbers``, the principal components of
    ``pictures``.
    """

    def cells(shown: Tensor) -> Tensor:
        return shown.unfold(2, cell, cell).unfold(3, cell, cell).permute(0, 2, 3, 1, 4, 5).flatten(3)  # [N, h, w, 3 cell^2]

    known = cells(pictures).flatten(0, 2)
    mean = known.mean(0)
    directions = torch.linalg.svd(((known - mean).T @ (known - mean)).double())[0][:, :numbers].float()
    coded = (cells(held_out) - mean) @ directions @ directions.T + mean
    error = (coded - cells(held_out)).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error)


def _psnr(options: argparse.Namespace) -> dict[str, object]:
    vae = trained_vae(options)
    held_out = from_pixels(np.stack([render(described_scene(HELD_OUT + i))[0] for i in range(options.count)]))
    found: dict[str, object] = {"renderings": round(float(psnr(reconstruct(vae, held_out), held_out).mean()), 2)}
    by_concept = {}
    for name, concept in CONCEPTS.items():
        pictures = from_pixels(np.stack([e.picture for e in examples(concept, min(16, options.count), seed=1)]))
        by_concept[name] = round(float(psnr(reconstruct(vae, pictures), pictures).mean()), 2)
    found |= {"concepts": by_concept, "ten_concepts": round(float(np.mean([*by_concept.values()])), 2)}
    channels = int(vae.config.latent_channels)
    known = from_pixels(np.stack([render(described_scene(i))[0] for i in range(options.count)]))
    found[f"linear_code_of_{channels}"] = round(float(linear_bound(known, held_out, channels).mean()), 2)
    file = judge_of(options)
    if not file.is_file() and not options.judge:
        log.warning("no parts are read: %s is not there, which the stage parts makes; --judge names another", file)
    else:
        judge = load_judge(file, fastest_device())
        scenes = [lone_individual(HELD_OUT + i) for i in range(options.count)]
        pictures = from_pixels(np.stack([render(scene)[0] for scene in scenes]))
        found["parts_right_in_renderings"] = accuracy(judge, pictures, scenes)
        found["parts_right_in_reconstructions"] = accuracy(judge, reconstruct(vae, pictures), scenes)
    return found


def trained_vae(options: argparse.Namespace) -> AutoencoderTiny:
    """The autoencoder of a training; with ``--shipped`` the one that ships."""
    vae = pass_through()
    state = vae_state() if options.shipped else load_file(autoencoder_file(options.folder))
    vae.load_state_dict({k: v.float() for k, v in state.items()})
    return vae.to(fastest_device()).eval()


def judge_of(options: argparse.Namespace) -> Path:
    """The file of the judge that was given, else the one that ships or the training's own."""
    return judge_file(options.judge or (SHIPPED if options.shipped else result_file(options.folder, "parts")))


def _parts(options: argparse.Namespace) -> Mapping[str, object]:
    file = judge_of(options)
    found = held_out_accuracy(load_judge(file, fastest_device()), options.count)
    return {name: round(value, 4) for name, value in found.items()} | {"bytes": file.stat().st_size}


def _tower(options: argparse.Namespace) -> Mapping[str, object]:
    vision = options.vision or (SHIPPED if options.shipped else str(options.folder / "tower"))
    return {name: round(value, 4) for name, value in told_apart(load_tower(vision, fastest_device()), options.count).items()}


def _captions(options: argparse.Namespace) -> dict[str, object]:
    scenes, captions = zip(*(one_described(HELD_OUT + i) for i in range(options.count)), strict=True)
    backbone = load_any(options.base or (SHIPPED if options.shipped else options.folder / "base"), fastest_device())
    pictures = paint_captions(backbone, list(captions), options.steps, options.guidance, options.batch)
    judge = load_judge(judge_of(options), fastest_device())
    exact = from_pixels(np.stack([render(scene)[0] for scene in scenes]))
    shown = {name: named_right(judge.read(seen), scenes) for name, seen in (("painted", pictures), ("renderings", exact))}
    if options.sheet:
        sides = {"painted": pictures, "exact": exact}
        rows = [(f"{name} {i + 1} to {i + 6}", seen[i : i + 6]) for i in range(0, 24, 6) for name, seen in sides.items()]
        write_picture(contact_sheet([row for row in rows if len(row[1])], side=256, label=150), options.sheet)
    return {"captions": options.count, **shown}


def named_right(reading: Reading, scenes: Sequence[Scene]) -> dict[str, float]:
    """How often each part that a caption names is right, by name, and the mean over all marks: pattern, accessory and their colours."""
    looks = [scene.things[0].look for scene in scenes]
    right = right_parts(reading, [look.kind for look in looks], np.stack([labels_of(look) for look in looks]))
    marks = [list(PARTS).index(name) for name in ("marking", "marking_colour", "accessory", "accessory_colour")]
    found = {name: float(right[:, i].nanmean()) for i, name in enumerate(PARTS)} | {"marks": float(right[:, marks].nanmean())}
    return {name: round(value, 4) for name, value in found.items()}


MEASURED: dict[str, Callable[[argparse.Namespace], Mapping[str, object]]] = {
    "psnr": _psnr,
    "parts": _parts,
    "tower": _tower,
    "captions": _captions,
}
