"""How good the base model is: a classifier trained on renderings reads what sampled pictures show."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...measure.report import from_pixels
from ..figures import COLOURS, FIGURES
from ..style import PLACES
from ..world import Scene, random_scene
from .loop import Optimisation, Session, in_fast_precision, train
from .wear import worn

KINDS, HUES, WHERE = list(FIGURES), list(COLOURS), [*PLACES, None]


class Judge(nn.Module):
    """Reads a picture: which classes are there ``[B, 10]``, the colour of each ``[B, 10, 9]`` and the place ``[B, 7]``."""

    def __init__(self, width: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (width, 2 * width, 4 * width, 6 * width):
            layers += [nn.Conv2d(channels, out, 4 if channels == 3 else 3, stride=2, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            layers += [nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU()] if channels != 3 else []
            channels = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * channels, len(KINDS) * (2 + len(HUES)) + len(WHERE))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f = self.body(pictures)
        out = self.head(torch.cat([f.mean((2, 3)), f.amax((2, 3))], 1)).float()
        present, colour, place = out.split([len(KINDS), len(KINDS) * (1 + len(HUES)), len(WHERE)], 1)
        return present, colour.unflatten(1, (len(KINDS), -1)), place


def labels(scene: Scene) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """Presence ``[10]``, colour index ``[10]`` (-1 absent, 8 none of the named), place index, whether colours show (no ink)."""
    present, colour = np.zeros(len(KINDS), np.float32), np.full(len(KINDS), -1)
    for thing in scene.things:
        k = KINDS.index(thing.look.kind)
        present[k] = 1
        word = thing.words.split()[0]
        colour[k] = HUES.index(word) if word in HUES else len(HUES)
    return present, colour, WHERE.index(scene.place), scene.style.name != "ink"


def learn_judge(judge: Judge, pictures: np.ndarray, session: Session, *, steps: int, batch: int = 64, lr: float = 1e-3) -> None:
    """Train on renderings of scenes ``0 .. len(pictures) - 1``."""
    present, colour, place, coloured = (np.stack(x) for x in zip(*[labels(random_scene(i)) for i in range(len(pictures))], strict=True))
    named = (colour >= 0) & (colour < len(HUES)) & coloured[:, None]
    targets = [torch.from_numpy(x) for x in (present, np.where(named, colour, -100), place)]

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        which = np.sort(rng.choice(len(pictures), batch, replace=False))
        seen = worn(from_pixels(pictures[which]), rng, generator).contiguous(memory_format=torch.channels_last)
        with in_fast_precision("cpu"):
            p, c, w = judge(seen)
        t_present, t_colour, t_place = (t[which] for t in targets)
        loss_colour = F.cross_entropy(c.flatten(0, 1), t_colour.flatten(), ignore_index=-100)
        return 3 * F.binary_cross_entropy_with_logits(p, t_present) + loss_colour + F.cross_entropy(w, t_place)

    average = train("judge", judge, loss_at, session, Optimisation(steps, lr))
    with torch.no_grad():
        for k, q in judge.named_parameters():
            q.copy_(average[k])


@dataclass
class Verdict:
    """Shares of captions obeyed: one object (class, colour, place) and two objects (both present, both right colours)."""

    kind: float
    colour: float
    place: float
    two_present: float
    two_coloured: float


@torch.no_grad()
def verdict(judge: Judge, pictures: Tensor, scenes: list[Scene]) -> Verdict:
    """Judge pictures ``[N, 3, 128, 128]`` in [-1, 1] of the captions of ``scenes`` (flat style, named colours)."""
    outputs = [judge(p.contiguous(memory_format=torch.channels_last)) for p in pictures.split(64)]
    present, colour, place = (torch.cat(x) for x in zip(*outputs, strict=True))
    kind, hue, where, both, both_hue = [], [], [], [], []
    for i, scene in enumerate(scenes):
        at = [KINDS.index(t.look.kind) for t in scene.things]
        want = [HUES.index(t.words.split()[0]) for t in scene.things]
        hues = [int(colour[i, k, :-1].argmax()) == h for k, h in zip(at, want, strict=True)]
        where.append(int(place[i].argmax()) == WHERE.index(scene.place))
        if len(at) == 1:
            kind.append(int(present[i].argmax()) == at[0])
            hue.append(hues[0])
        else:
            there = all(bool(present[i, k] > 0) for k in at)
            both.append(there)
            both_hue.append(there and all(hues))
    return Verdict(*(float(np.mean(x)) for x in (kind, hue, where, both, both_hue)))
