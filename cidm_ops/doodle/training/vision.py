"""The image tower: a small CLIP vision model, trained contrastively on captions and on who is who.

Two pictures of one individual must lie closer than pictures of two individuals of the same class, wherever they stand;
a picture must lie closest to its own caption. Both use the same embedding.
"""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from ...bank.formats import write_array
from ...measure.report import from_pixels
from ..figures import FIGURES, individual
from ..files import VISION_CONFIG
from ..style import PLACES, STYLES, Style, common_style
from ..world import Scene, arrange, render
from .diffusion import CONTEXT, Tokens, new_text_encoder
from .loop import Optimisation, Session, in_fast_precision, train
from .wear import worn

EMBEDDING = VISION_CONFIG["projection_dim"]
VIEWS = 4
BATCH, LR = 64, 1e-3


def new_vision() -> CLIPVisionModelWithProjection:
    """A ViT of four layers on 16 px patches of 128 px pictures, embeddings of 128."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION_CONFIG))


class TextTower(nn.Module):
    """The caption side: a text encoder of its own and a projection of its last token."""

    def __init__(self, vocabulary: int, end: int):
        super().__init__()
        self.encoder: CLIPTextModel = new_text_encoder(vocabulary, end)
        self.projection = nn.Linear(CONTEXT, EMBEDDING, bias=False)
        self.end = end

    def forward(self, ids: Tensor) -> Tensor:
        states = self.encoder(ids).last_hidden_state
        last = (ids == self.end).int().argmax(1)
        return self.projection(states[torch.arange(len(ids)), last])


def _views(seed: int) -> np.ndarray:
    """``[VIEWS, S, S, 3]``: one random individual, sometimes in one random style, in several places."""
    rng = np.random.default_rng((seed, 41))
    look = individual(str(rng.choice(list(FIGURES))), rng)
    style = Style()
    if rng.random() < 0.15:
        base = common_style(str(rng.choice(STYLES[1:])))
        paper, ink = (tuple(int(v) for v in rng.integers(*span, 3)) for span in ((200, 256), (0, 110)))
        style = Style(base.name, base.wash, paper, ink, base.line, base.strokes, base.grid, base.frame)
    out = []
    for place in rng.permutation(PLACES)[:VIEWS]:
        things = arrange([look], [look.kind], rng)
        out.append(render(Scene(things, str(place), style, int(rng.integers(2**31))))[0])
    return np.stack(out)


def individuals(folder: Path, count: int, workers: int) -> np.ndarray:
    """Pictures ``[count, VIEWS, 128, 128, 3]`` uint8 of ``count`` random individuals, kept in ``folder``."""
    file = folder / f"individuals-{count}.npy"
    if not file.exists():
        with ProcessPoolExecutor(workers) as pool:
            pictures = np.stack(list(pool.map(_views, range(count), chunksize=50)))
        write_array(pictures, file)
    return np.load(file, mmap_mode="r")


def learn_vision(
    vision: CLIPVisionModelWithProjection,
    text: TextTower,
    pictures: np.ndarray,
    people: np.ndarray,
    tokens: Tokens,
    session: Session,
    *,
    steps: int,
) -> None:
    """Train both towers; temperatures are fixed (0.05 for captions, 0.1 for individuals)."""
    device = vision.device
    both = nn.ModuleDict({"vision": vision, "text": text})
    wordings = len(tokens.captions) // len(pictures)

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        which = np.sort(rng.choice(len(pictures), BATCH, replace=False))
        who = np.sort(rng.choice(len(people), BATCH, replace=False))
        a, b = rng.permuted(np.tile(np.arange(VIEWS), (BATCH, 1)), axis=1)[:, :2].T
        seen = from_pixels(np.concatenate([pictures[which], people[who, a], people[who, b]]), device)
        seen = worn(seen, rng, generator)
        ids = tokens.batch(which * wordings + rng.integers(wordings, size=BATCH), rng, dropout=0.0).to(device)
        with in_fast_precision(device):
            embedding = vision(seen).image_embeds
            words = text(ids)
        captioned, first, second = F.normalize(embedding.float(), dim=-1).split(BATCH)
        words = F.normalize(words.float(), dim=-1)
        target = torch.arange(BATCH, device=device)
        caption_logits, people_logits = captioned @ words.T / 0.05, first @ second.T / 0.1
        logits = (caption_logits, caption_logits.T, people_logits, people_logits.T)
        return torch.stack([F.cross_entropy(x, target) for x in logits]).mean()

    average = train("vision", both, loss_at, session, Optimisation(steps, LR, weight_decay=0.05))
    with torch.no_grad():
        for k, p in both.named_parameters():
            p.copy_(average[k])
