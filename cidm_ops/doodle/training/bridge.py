"""The bridge: a linear map from the end of a caption, as the U-Net's text encoder leaves it, into the image tower's space.

CLIP's text encoder in Stable Diffusion has such a map, its text projection, and both of Doodle's learned apart from each other. Encoder and
tower stay as they are, so what they make of the scenes is kept, and a step takes a millisecond. The last scenes are held out.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from ...causal import end_states
from ...engines.tokenizer import tokenize
from ...measure.report import from_pixels
from ...method.contrast import contrast_loss, found_right
from ...models.clip import END
from ..files import SCALE, TEXT_CONFIG, VISION_CONFIG
from .loop import Optimisation, Session, save_tensors, train

log = logging.getLogger("cidm.doodle")
BATCH, LR = 256, 1e-3
TOGETHER = 100  # pictures or captions that are embedded at once
SHARD = 4000  # scenes of a file of embeddings
RIDGE = 1e-6  # added to the mean squares of ends, which few captions do not span
OF = 64  # pictures that the right one is found among


def new_bridge() -> nn.Linear:
    """Makes a bridge ``[E, D]``, without a bias, as CLIP's text projections are."""
    return nn.Linear(TEXT_CONFIG["hidden_size"], VISION_CONFIG["projection_dim"], bias=False)


@torch.no_grad()
def embed_scenes(
    vision: CLIPVisionModelWithProjection, text: Any, pictures: np.ndarray, captions: list[list[str]], folder: Path
) -> tuple[Tensor, Tensor]:
    """Returns embeddings of pictures ``[N, E]`` and the ends of their ``captions``, W wordings each, ``[N, W, D]``; kept in shards."""
    shards = []
    for number, start in enumerate(range(0, len(pictures), SHARD)):
        file, part = folder / f"bridged-{number}.safetensors", slice(start, start + SHARD)
        if not file.exists():
            ends = ends_of(text, [said for wordings in captions[part] for said in wordings])
            shown = [
                vision(from_pixels(some, vision.device)).image_embeds
                for some in np.split(pictures[part], range(TOGETHER, len(pictures[part]), TOGETHER))
            ]
            save_tensors({"pictures": torch.cat(shown), "captions": ends.unflatten(0, (-1, len(captions[0])))}, file)
        shards.append(load_file(file))
    return torch.cat([shard["pictures"] for shard in shards]), torch.cat([shard["captions"] for shard in shards])


def ends_of(text: Any, captions: list[str]) -> Tensor:
    """Returns the ends ``[N, D]`` of captions, each of which is computed once."""
    each = list(dict.fromkeys(captions))
    ids = torch.cat([tokenize(said)[:1] for said in each])
    table = text.get_input_embeddings()
    ends = [end_states(text, table(part), (part == END).int().argmax(1)) for part in ids.to(table.weight.device).split(TOGETHER)]
    number = {said: i for i, said in enumerate(each)}
    return torch.cat(ends)[[number[said] for said in captions]]


def learn_bridge(bridge: nn.Linear, pictures: Tensor, captions: Tensor, session: Session, *, steps: int) -> None:
    """Trains the bridge on embeddings ``pictures [N, E]`` and ends of captions ``[N, W, D]``."""

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        which = torch.from_numpy(rng.choice(len(pictures), min(BATCH, len(pictures)), replace=False))
        wording = torch.from_numpy(rng.integers(captions.shape[1], size=len(which)))
        return contrast_loss(pictures[which], bridge(captions[which, wording]), range(len(which)), SCALE)

    average = train("bridge", bridge, loss_at, session, Optimisation(steps, LR))
    with torch.no_grad():
        for k, p in bridge.named_parameters():
            p.copy_(average[k])


@torch.no_grad()
def retrieval(bridge: nn.Linear, pictures: Tensor, captions: Tensor, among: int = OF) -> float:
    """Returns how often a picture's nearest caption, ``among`` those of so many pictures, is its own."""
    said = bridge(captions[:, 0])
    parts = zip(pictures.split(among), said.split(among), strict=True)
    return float(torch.cat([found_right(a, b, range(len(a)), range(len(b))) for a, b in parts]).mean())


@torch.no_grad()
def least_squares(pictures: Tensor, captions: Tensor) -> Tensor:
    """Returns the linear map ``[E, D]`` that is nearest to the unit embeddings: where the bridge begins."""
    ends, wanted = captions.flatten(0, 1).double(), F.normalize(pictures, dim=-1).repeat_interleave(captions.shape[1], 0).double()
    alike = ends.T @ ends + RIDGE * len(ends) * torch.eye(ends.shape[1], dtype=ends.dtype, device=ends.device)
    return torch.linalg.solve(alike, ends.T @ wanted).T.float().contiguous()
