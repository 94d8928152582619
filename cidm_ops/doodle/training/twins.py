"""The image tower: a small CLIP vision model with patches of 8 pixels, trained so that individuals that differ in one mark lie apart.

Two pictures of one individual must lie closer than a picture of its *twin*, who is like it but for one mark, wherever they stand (InfoNCE,
van den Oord et al. 2018, with a hard negative for everyone).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ...bank.files import write_atomically
from ...engines.parts import PARTS, UNTOLD, labels_of
from ...measure.presence import area_under_curve
from ...measure.report import from_pixels
from ...measure.scores import embed
from ..figures import ACCESSORIES, COLOURS, FIGURES, MARKINGS, UNNAMED, Look, individual, plain
from ..files import VISION_CONFIG, vision_config
from ..style import PLACES, STYLES, Style
from ..world import Scene, arrange, render
from .loop import Optimisation, Session, in_fast_precision, save_tensors, train
from .parts import HELD_OUT
from .reader import personal_style
from .wear import worn

MARKS = ("marking", "marking_colour", "accessory", "accessory_colour", "accent")
BATCH, LR, TEMPERATURE = 48, 2e-3, 0.07
STYLED = 0.15  # how often it is a style that two pictures share, whose twin has other colours


def new_tower() -> CLIPVisionModelWithProjection:
    """A ViT of four layers on 8 px patches of 128 px pictures, embeddings of 128."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION_CONFIG))


def tower_of(state: Mapping[str, Tensor]) -> CLIPVisionModelWithProjection:
    """A tower with such weights, in full precision."""
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision_config(state)))
    tower.load_state_dict({k: v.float() for k, v in state.items()})
    return tower.eval()


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
    shown = draw_pair(seed)
    return np.stack([_view(*each, shown.rng) for each in zip(shown.looks, shown.places, shown.styles, strict=True)])


def draw_twin_labels(seed: int) -> np.ndarray:
    """The parts of the same four as they are kept, ``[4, 6]`` uint8, ``labels_of`` plus one; a style changes what they look like, so there
    nothing is told.
    """
    shown = draw_pair(seed)
    nothing = np.full(len(PARTS), UNTOLD)
    told = [labels_of(look) if style == Style() else nothing for look, style in zip(shown.looks, shown.styles, strict=True)]
    return (np.stack(told) + 1).astype(np.uint8)


@dataclass(frozen=True)
class Pair:
    """What four pictures show, and the random numbers that the rest is drawn from."""

    looks: list[Look]
    places: list[str]
    styles: list[Style]
    rng: np.random.Generator


def draw_pair(seed: int) -> Pair:
    """An individual and its twin, or a style and another one, twice each."""
    rng = np.random.default_rng((seed, 179))
    places = [str(place) for place in rng.permutation(PLACES)[:4]]
    if rng.random() < STYLED:
        name = str(rng.choice(STYLES[1:]))
        styles = [style for style in (personal_style(name, rng) for _ in range(2)) for _ in range(2)]
        looks = [plain(str(rng.choice(list(FIGURES))), [*COLOURS.values()][rng.integers(len(COLOURS))]) for _ in places]
        return Pair(looks, places, styles, rng)
    look = individual(str(rng.choice(list(FIGURES))), rng)
    other = twin(look, rng)
    return Pair([look, look, other, other], places, [Style()] * 4, rng)


def _view(look: Look, place: str, style: Style, rng: np.random.Generator) -> np.ndarray:
    return render(Scene(arrange([look], [look.kind], rng), place, style, int(rng.integers(2**31))))[0]


@dataclass(frozen=True)
class Twins:
    """Twins as a tower learns from them: ``pictures [N, 4, H, W, 3]``, the ``labels [N, 4, 6]`` of their parts, and, if it is to see what a
    judge sees, the ``sights [4 N, C, h, w]`` of that.
    """

    pictures: np.ndarray
    labels: np.ndarray
    sights: Tensor | None = None


def learn_tower(tower: CLIPVisionModelWithProjection, twins: Twins, session: Session, *, steps: int) -> None:
    """Train on twins: each picture must find the other one of its own among those of all.

    From that alone a tower needs far longer to learn what a mark is, so each part must be read off the embedding by a linear map, and with
    sights every patch is asked for what the judge sees there (see ``Alignment``).
    """
    device, batch = tower.device, min(BATCH, len(twins.pictures))
    width, sights = int(tower.config.hidden_size), twins.sights
    learned = nn.ModuleDict({"tower": tower, "parts": nn.Linear(int(tower.config.projection_dim), sum(PARTS.values())).to(device)})
    if sights is not None:
        learned["project"] = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, sights.shape[1])).to(device)
    order = np.array([0, 2, 1, 3])  # the first picture of everyone, then the second

    def of_all(views: np.ndarray) -> np.ndarray:
        """What is of the four pictures of each pair ``[batch, 4, ...]``, in that order ``[4 batch, ...]``."""
        return views[:, order].swapaxes(0, 1).reshape(-1, *views.shape[2:])

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        which = np.sort(rng.choice(len(twins.pictures), batch, replace=False))
        seen = worn(from_pixels(of_all(twins.pictures[which]), device), rng, generator)
        with in_fast_precision(device):
            found = tower(seen)
        embedding = found.image_embeds.float()
        first, second = F.normalize(embedding, dim=-1).split(2 * batch)
        logits = first @ second.T / TEMPERATURE
        target = torch.arange(2 * batch, device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        labels = torch.from_numpy(of_all(twins.labels[which])).to(device).long() - 1  # [4 batch, 6]
        for read, said in zip(learned["parts"](embedding).split([*PARTS.values()], -1), labels.unbind(-1), strict=True):
            if bool((said != UNTOLD).any()):
                loss = loss + F.cross_entropy(read, said, ignore_index=UNTOLD) / len(PARTS)
        if sights is None:
            return loss
        wanted = sights[torch.from_numpy(of_all(4 * which[:, None] + np.arange(4)))].to(device)
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
    description = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModelWithProjection"], **vision_config(state)}
    write_atomically(json.dumps(description, indent=1).encode(), folder / "config.json")
    side = VISION_CONFIG["image_size"]
    seen = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": {"height": side, "width": side}}
    write_atomically(json.dumps(seen, indent=1).encode(), folder / "preprocessor_config.json")


def layers_of(tower: CLIPVisionModelWithProjection) -> Callable[[Tensor], list[Tensor]]:
    """What each layer of a frozen tower makes of pictures ``[B, 3, H, W]`` in [-1, 1], resized to its own: ``[B, C, N]``."""
    tower.requires_grad_(False).eval()
    side = VISION_CONFIG["image_size"]

    def features(pictures: Tensor) -> list[Tensor]:
        if pictures.shape[-2:] != (side, side):
            pictures = F.interpolate(pictures, (side, side), mode="bilinear")
        return [states.transpose(1, 2) for states in tower(pictures, output_hidden_states=True).hidden_states[1:]]

    return features
