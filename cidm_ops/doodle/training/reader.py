"""The reader: a small CLIP trained on captions alone, which says how well a picture shows what a text asks for.

The image tower tells individuals of a class apart, so in its space a personal dog is far from "a dog", however well it shows one. Here half
of the pictures are of individuals and styles that their captions do not describe further, and some captions leave out place or colours:
what words cannot say, or do not ask for, does not count.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from ...bank.files import write_atomically
from ...bank.formats import write_array
from ...measure.report import from_pixels
from ..figures import individual
from ..files import READER_TEXT, VISION_CONFIG
from ..style import Style, common_style
from ..world import Scene, caption, random_scene, render
from .diffusion import text_encoder
from .loop import Optimisation, Session, in_fast_precision, train
from .tokens import Tokens
from .wear import worn

PERSONAL = 10_000_000  # seeds of scenes with somebody's own things begin here
WORDINGS = 4
BATCH, LR = 96, 1e-3


def new_reader() -> CLIPVisionModelWithProjection:
    """A ViT of four layers on 16 px patches of 128 px pictures, embeddings of 128."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**{**VISION_CONFIG, "patch_size": 16}))


class TextTower(nn.Module):
    """The caption side: a text encoder of its own and a projection of its last token."""

    def __init__(self, vocabulary: int, end: int):
        super().__init__()
        self.encoder: CLIPTextModel = text_encoder(READER_TEXT, vocabulary, end)
        self.projection = nn.Linear(READER_TEXT["hidden_size"], VISION_CONFIG["projection_dim"], bias=False)
        self.end = end

    def forward(self, ids: Tensor) -> Tensor:
        states = self.encoder(ids).last_hidden_state
        last = (ids == self.end).int().argmax(1)
        return self.projection(states[torch.arange(len(ids)), last])


def personal_style(name: str, rng: np.random.Generator) -> Style:
    """Somebody's own painting, drawing or ink, which captions call just that."""
    common = common_style(name)
    paper, ink = (tuple(int(v) for v in rng.integers(*span, 3)) for span in ((190, 256), (0, 180)))
    wash = float(np.clip(common.wash + rng.uniform(-0.3, 0.15), 0, 0.9)) if name != "ink" else 0.0
    strokes = float(rng.uniform(4, 11)) if name == "painting" else 0.0
    extras = [tuple(int(v) for v in rng.integers(40, 250, 3)) if rng.random() < share else None for share in (0.4, 0.5, 0.4)]
    grid, frame, seal = extras
    return Style(name, wash, paper, ink, common.line, strokes, grid if name == "drawing" else None, frame, seal if name == "ink" else None)


def personal_scene(seed: int) -> Scene:
    """A scene of the world in which nobody is ordinary: individuals without colour words, and in every second one a style."""
    rng = np.random.default_rng((seed, 61))
    scene = random_scene(PERSONAL + seed)
    things = tuple(replace(t, look=individual(t.look.kind, rng), words=t.look.kind) for t in scene.things)
    style = str(rng.choice(("flat", "painting", "drawing", "ink"), p=[0.5, 0.17, 0.17, 0.16]))
    return replace(scene, things=things, style=Style() if style == "flat" else personal_style(style, rng))


def wordings(scene: Scene, seed: int) -> list[str]:
    """Captions of a scene, some without its place, some without its colours."""
    out = []
    for number in range(WORDINGS):
        rng = np.random.default_rng((seed, number, 97))
        silent, colourless = rng.random() < 0.4, rng.random() < 0.25
        things = tuple(replace(t, words=t.look.kind) for t in scene.things) if colourless else scene.things
        out.append(caption(replace(scene, things=things, place=None if silent else scene.place), rng))
    return out


def plain_wordings(count: int) -> list[list[str]]:
    """The same for the scenes ``0 .. count - 1`` of the world."""
    return [wordings(random_scene(seed), seed) for seed in range(count)]


def _personal(seed: int) -> tuple[np.ndarray, list[str]]:
    scene = personal_scene(seed)
    return render(scene)[0], wordings(scene, PERSONAL + seed)


def personal(folder: Path, count: int, workers: int) -> tuple[np.ndarray, list[list[str]]]:
    """Pictures ``[count, 128, 128, 3]`` uint8 of personal things and styles, and their captions, kept in ``folder``."""
    pictures, words = folder / f"personal-{count}.npy", folder / f"personal-{count}.txt"
    if not words.exists():
        with ProcessPoolExecutor(workers) as pool:
            shown, captions = zip(*pool.map(_personal, range(count), chunksize=50), strict=True)
        write_array(np.stack(shown), pictures)
        write_atomically("\n".join("\t".join(c) for c in captions).encode(), words)
    return np.load(pictures, mmap_mode="r"), [line.split("\t") for line in words.read_text(encoding="utf-8").split("\n")]


def learn_reader(
    vision: CLIPVisionModelWithProjection,
    text: TextTower,
    sets: list[tuple[np.ndarray, int]],
    tokens: Tokens,
    session: Session,
    *,
    steps: int,
) -> None:
    """Train both sides on equal parts of the ``sets``: pictures, and where their captions begin in ``tokens``; temperature 0.05."""
    device = vision.device
    both = nn.ModuleDict({"vision": vision, "text": text})
    part = min(BATCH // len(sets), *(len(pictures) for pictures, _ in sets))

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        which = [np.sort(rng.choice(len(pictures), part, replace=False)) for pictures, _ in sets]
        seen = from_pixels(np.concatenate([pictures[w] for w, (pictures, _) in zip(which, sets, strict=True)]), device)
        said = np.concatenate([first + w * WORDINGS + rng.integers(WORDINGS, size=part) for w, (_, first) in zip(which, sets, strict=True)])
        ids = tokens.batch(said, rng, dropout=0.0)
        ids = ids[:, : 1 + int((ids != tokens.end).sum(1).max())].to(device)  # what follows the last word does not count
        with in_fast_precision(device):
            shown, words = vision(worn(seen, rng, generator)).image_embeds, text(ids)
        logits = F.normalize(shown.float(), dim=-1) @ F.normalize(words.float(), dim=-1).T / 0.05
        target = torch.arange(len(logits), device=device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    average = train("reader", both, loss_at, session, Optimisation(steps, LR, weight_decay=0.05))
    with torch.no_grad():
        for k, p in both.named_parameters():
            p.copy_(average[k])
