"""The tower of marks: a small CLIP vision model with patches of 8 pixels, trained so that individuals that differ in one mark lie apart.

Two pictures of one individual must lie closer than a picture of its *twin*, who is like it but for one mark, wherever they stand (InfoNCE,
van den Oord et al. 2018, with a hard negative for everyone).
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ...bank.files import write_atomically
from ...engines.parts import UNTOLD, labels_of
from ...measure.presence import area_under_curve
from ...measure.report import from_pixels
from ...measure.scores import embed
from ..figures import ACCESSORIES, COLOURS, FIGURES, MARKINGS, UNNAMED, Look, individual, plain
from ..files import VISION_CONFIG
from ..style import PLACES, STYLES, Style
from ..world import Scene, arrange, render
from .loop import Optimisation, Session, in_fast_precision, save_tensors, train
from .parts import HELD_OUT
from .reader import personal_style
from .wear import worn

TOWER_CONFIG: dict[str, Any] = {**VISION_CONFIG, "patch_size": 8}
MARKS = ("marking", "marking_colour", "accessory", "accessory_colour", "accent")
BATCH, LR, TEMPERATURE = 48, 2e-3, 0.07
STYLED = 0.15  # how often it is a style that two pictures share, whose twin has other colours


def new_tower() -> CLIPVisionModelWithProjection:
    """A ViT of four layers on 8 px patches of 128 px pictures, embeddings of 128."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**TOWER_CONFIG))


def twin(look: Look, rng: np.random.Generator) -> Look:
    """The same individual but for one mark that can be seen: pattern, accessory, the colour of one of them, or the second colour."""
    taken = {look.body, look.accent, look.marking_colour, look.accessory_colour}
    colours: list[Any] = [rgb for rgb in (*COLOURS.values(), *UNNAMED) if rgb not in taken]
    others: dict[str, list[Any]] = {
        "marking": [one for one in MARKINGS if one != look.marking],
        "accessory": [one for one in ACCESSORIES if one != look.accessory],
    }
    while True:  # until it can be seen: every look has a second colour
        mark = str(rng.choice(MARKS))
        free = others.get(mark, colours)
        other = replace(look, **{mark: free[rng.integers(len(free))]})
        own, changed = labels_of(look), labels_of(other)
        if bool(((own != changed) & (own != UNTOLD) & (changed != UNTOLD)).any()):
            return other


def draw_twins(seed: int) -> np.ndarray:
    """Four pictures ``[4, 128, 128, 3]`` uint8 in different places: two of an individual and two of its twin, or two of a style and two of
    another one.
    """
    rng = np.random.default_rng((seed, 179))
    places = [str(place) for place in rng.permutation(PLACES)[:4]]
    if rng.random() < STYLED:
        name = str(rng.choice(STYLES[1:]))
        styles = [style for style in (personal_style(name, rng) for _ in range(2)) for _ in range(2)]
        looks = [plain(str(rng.choice(list(FIGURES))), [*COLOURS.values()][rng.integers(len(COLOURS))]) for _ in places]
    else:
        look = individual(str(rng.choice(list(FIGURES))), rng)
        other = twin(look, rng)
        looks, styles = [look, look, other, other], [Style()] * 4
    return np.stack([_view(look, place, style, rng) for look, place, style in zip(looks, places, styles, strict=True)])


def _view(look: Look, place: str, style: Style, rng: np.random.Generator) -> np.ndarray:
    return render(Scene(arrange([look], [look.kind], rng), place, style, int(rng.integers(2**31))))[0]


def learn_tower(
    tower: CLIPVisionModelWithProjection, pictures: np.ndarray, session: Session, *, steps: int, sights: Tensor | None = None
) -> None:
    """Train on the ``pictures [N, 4, H, W, 3]`` of twins; each must find the other one of its own among those of all.

    With the ``sights [4 N, C, h, w]`` of a judge every patch is asked for what that sees there as well (see ``Alignment``): from the pairs
    alone a tower needs far longer to learn what a mark is.
    """
    device, batch = tower.device, min(BATCH, len(pictures))
    width = int(tower.config.hidden_size)
    learned = nn.ModuleDict({"tower": tower})
    if sights is not None:
        learned["project"] = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, sights.shape[1])).to(device)
    order = [0, 2, 1, 3]  # the first picture of everyone, then the second

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        which = np.sort(rng.choice(len(pictures), batch, replace=False))
        views = pictures[which]  # [batch, 4, S, S, 3]
        seen = worn(from_pixels(np.concatenate([views[:, i] for i in order]), device), rng, generator)
        with in_fast_precision(device):
            found = tower(seen)
        first, second = F.normalize(found.image_embeds.float(), dim=-1).split(2 * batch)
        logits = first @ second.T / TEMPERATURE
        target = torch.arange(2 * batch, device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        if sights is None:
            return loss
        wanted = sights[torch.from_numpy(np.concatenate([4 * which + i for i in order]))].to(device)
        with in_fast_precision(device):
            patches = learned["project"](found.last_hidden_state[:, 1:]).float()
        return loss + 1 - F.cosine_similarity(patches, wanted.flatten(2).mT.float(), dim=-1).mean()

    average = train("tower", learned, loss_at, session, Optimisation(steps, LR, weight_decay=0.05, muon=True))
    with torch.no_grad():
        for k, p in tower.named_parameters():
            p.copy_(average[f"tower.{k}"])


def told_apart(tower: Callable[[Tensor], Tensor], count: int) -> dict[str, float]:
    """How well a tower separates held-out individuals: areas under the curve of pairs of one individual against pairs of two of one class
    (``others``) and of twins that differ in one mark (``twins``), and the latter by mark.
    """
    looks = [individual(list(FIGURES)[i % len(FIGURES)], np.random.default_rng((HELD_OUT + i, 181))) for i in range(count)]
    twins = [twin(look, np.random.default_rng((HELD_OUT + i, 191))) for i, look in enumerate(looks)]
    views = []
    for i, (look, other) in enumerate(zip(looks, twins, strict=True)):
        rng = np.random.default_rng((HELD_OUT + i, 193))
        places = [str(place) for place in rng.permutation(PLACES)[:3]]
        views.append(np.stack([_view(x, place, Style(), rng) for x, place in zip((look, look, other), places, strict=True)]))
    seen = embed(tower, from_pixels(np.concatenate(views))).unflatten(0, (count, 3))  # [count, 3, E]
    own, across = (seen[:, 0] * seen[:, 1]).sum(-1), (seen[:, 0] * seen[:, 2]).sum(-1)
    alike = torch.tensor([[a.kind == b.kind and a is not b for b in looks] for a in looks])
    found = {"twins": area_under_curve(own, across)}
    if bool(alike.any()):  # with more individuals than there are classes
        found["others"] = area_under_curve(own, (seen[:, 0] @ seen[:, 1].T)[alike])
    changed = [next(mark for mark in MARKS if getattr(a, mark) != getattr(b, mark)) for a, b in zip(looks, twins, strict=True)]
    for mark in MARKS:
        some = [i for i, name in enumerate(changed) if name == mark]
        if some:
            found[f"twins_{mark}"] = area_under_curve(own, across[some])
    return found


def write_tower(state: dict[str, Tensor], folder: Path) -> None:
    """Writes a tower as a folder of transformers in single precision, which every ``--vision`` takes."""
    save_tensors({k: v.float() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})
    description = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModelWithProjection"], **TOWER_CONFIG}
    write_atomically(json.dumps(description, indent=1).encode(), folder / "config.json")
    side = TOWER_CONFIG["image_size"]
    seen = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": {"height": side, "width": side}}
    write_atomically(json.dumps(seen, indent=1).encode(), folder / "preprocessor_config.json")


def layers_of(tower: CLIPVisionModelWithProjection) -> Callable[[Tensor], list[Tensor]]:
    """What each layer of a frozen tower makes of pictures ``[B, 3, H, W]`` in [-1, 1], resized to its own: ``[B, C, N]``."""
    tower.requires_grad_(False).eval()
    side = TOWER_CONFIG["image_size"]

    def features(pictures: Tensor) -> list[Tensor]:
        if pictures.shape[-2:] != (side, side):
            pictures = F.interpolate(pictures, (side, side), mode="bilinear")
        return [states.transpose(1, 2) for states in tower(pictures, output_hidden_states=True).hidden_states[1:]]

    return features
