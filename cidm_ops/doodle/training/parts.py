"""The judge of parts is trained on renderings, whose parts are known, and asked about renderings that it never saw."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...engines.parts import KINDS, MARK, PALETTE, PARTS, UNTOLD, PartsJudge, labels_of, right_parts
from ...measure.report import from_pixels
from ..figures import FIGURES, individual, plain
from ..style import PLACES
from ..world import Scene, arrange, render
from .loop import Optimisation, Session, in_fast_precision, save_tensors, train
from .renderings import kept
from .wear import worn

HELD_OUT = 20_000_000  # seeds of what no training sees begin here
IGNORED = -100  # the label that cross-entropy passes over
BATCH, LR = 64, 3e-3


def parts_scene(seed: int) -> Scene:
    """One to three things of different classes in a flat scene, most of them individuals, the others plain in any colour."""
    rng = np.random.default_rng((seed, 151))
    n = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
    looks = []
    for kind in rng.choice(list(FIGURES), n, replace=False):
        ordinary = plain(str(kind), PALETTE[rng.integers(len(PALETTE))]).with_proportions(*rng.uniform(-0.8, 0.8, 3))
        looks.append(individual(str(kind), rng) if rng.random() < 0.8 else ordinary)
    place = str(rng.choice(PLACES)) if rng.random() < 0.85 else None
    return Scene(arrange(looks, [look.kind for look in looks], rng), place, seed=int(rng.integers(2**31)))


def scene_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Which classes are there ``[K]``, 0 or 1, and the parts of the thing of each class ``[K, 6]``, ``UNTOLD`` where there is none."""
    there, parts = np.zeros(len(KINDS), np.float32), np.full((len(KINDS), len(PARTS)), UNTOLD)
    for thing in scene.things:
        k = KINDS.index(thing.look.kind)
        there[k], parts[k] = 1, labels_of(thing.look)
    return there, parts


def draw_parts(seed: int) -> np.ndarray:
    """The rendering ``[128, 128, 3]`` uint8 of ``parts_scene``."""
    return render(parts_scene(seed))[0]


def draw_labels(seed: int) -> np.ndarray:
    """What ``scene_labels`` says of the same scene, as it is kept: ``[K, 7]`` uint8, whether a class is there and its parts plus one."""
    there, parts = scene_labels(parts_scene(seed))
    return np.concatenate([there[:, None], parts + 1], 1).astype(np.uint8)


def learn_parts(judge: PartsJudge, folder: Path, count: int, workers: int, session: Session, *, steps: int) -> None:
    """Train on renderings of the scenes ``0 .. count - 1``, some of them blurred and grained as a decoder leaves them."""
    pictures = kept(folder, "parts", draw_parts, count, workers)
    labels = torch.from_numpy(np.array(kept(folder, "parts-labels", draw_labels, count, workers)))
    there, parts = labels[..., 0].float(), labels[..., 1:].long() - 1
    device, batch = next(judge.parameters()).device, min(BATCH, count)

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        which = np.sort(rng.choice(len(pictures), batch, replace=False))
        seen = worn(from_pixels(pictures[which], device), rng, generator).contiguous(memory_format=torch.channels_last)
        with in_fast_precision(device):
            reading = judge(seen)
        wanted = parts[which].where(parts[which] != UNTOLD, IGNORED).to(device)
        loss = 3 * F.binary_cross_entropy_with_logits(reading.there, there[which].to(device))
        for i, name in enumerate(PARTS):
            told = wanted[..., i].flatten()
            if bool((told != IGNORED).any()):
                loss = loss + F.cross_entropy(reading.parts[name].flatten(0, 1), told, ignore_index=IGNORED)
        return loss

    average = train("judge-of-parts", judge, loss_at, session, Optimisation(steps, LR, muon=True))
    with torch.no_grad():
        for k, p in judge.named_parameters():
            p.copy_(average[k])


def save_judge(judge: PartsJudge, file: Path) -> None:
    """Writes the judge as it is shipped, in half precision."""
    save_tensors({k: v.half() for k, v in judge.state_dict().items()}, file, {MARK: "1"})


def held_out_accuracy(judge: PartsJudge, count: int) -> dict[str, float]:
    """How often each part of single individuals in renderings that no training saw is read right, and the mean over all that was told."""
    scenes = [lone_individual(HELD_OUT + i) for i in range(count)]
    pictures = from_pixels(np.stack([render(scene)[0] for scene in scenes]))
    return accuracy(judge, pictures, scenes)


def lone_individual(seed: int) -> Scene:
    """One random individual in a place."""
    rng = np.random.default_rng((seed, 157))
    look = individual(str(rng.choice(list(FIGURES))), rng)
    return Scene(arrange([look], [look.kind], rng), str(rng.choice(PLACES)), seed=int(rng.integers(2**31)))


def accuracy(judge: PartsJudge, pictures: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """How often each part of the first thing of each scene is read right off its picture, by name, and the mean over all that was told."""
    looks = [scene.things[0].look for scene in scenes]
    right = right_parts(judge.read(pictures), [look.kind for look in looks], np.stack([labels_of(look) for look in looks]))
    return {name: float(right[:, i].nanmean()) for i, name in enumerate(PARTS)} | {"all": float(right.nanmean())}
