"""What a step takes from a dataset: which pictures, how they are drawn and worded, and their latents, kept where they do not change.

All that is random comes from the seed and the number of the batch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone, TransformerBackbone
from .captions import Wording, mirror_caption
from .dataset import Dataset


@dataclass(frozen=True)
class Sample:
    """One picture of a batch: latent ``[C, h, w]``, where to learn ``[1, h, w]`` (everywhere if ``None``) and what the text says."""

    latent: Tensor
    mask: Tensor | None
    text: str


class Batches:
    """The batches of a dataset whose ``captions`` have the concept's words in them."""

    def __init__(self, backbone: Backbone | TransformerBackbone, data: Dataset, captions: Sequence[str], wording: Wording, seed: str):
        self.backbone, self.data, self.captions, self.wording, self.seed = backbone, data, list(captions), wording, seed
        self.latents: dict[tuple[int, bool], Tensor] = {}

    def batch(self, number: int, size: int) -> tuple[list[Sample], torch.Generator]:
        """Batch ``number`` of a run and the generator of its noise."""
        rng = random.Random(f"{self.seed}/{number}")
        chosen = self.choose(number, size)
        flips = [self.data.flip and rng.random() < 0.5 for _ in chosen]
        drawn = [self.draw(i, flip, rng) for i, flip in zip(chosen, flips, strict=True)]
        said = [mirror_caption(self.captions[i]) if flip else self.captions[i] for i, flip in zip(chosen, flips, strict=True)]
        texts = [self.wording.say(caption, rng) for caption in said]
        samples = [Sample(*picture, text) for picture, text in zip(drawn, texts, strict=True)]
        return samples, torch.Generator().manual_seed(rng.getrandbits(63))

    def texts(self) -> list[str]:
        """Returns all texts that batches can say; none where the parts of captions change places, which makes too many."""
        if self.wording.shuffle and any("," in caption for caption in self.captions):
            return []
        said = [*self.captions, *(map(mirror_caption, self.captions) if self.data.flip else ())]
        worded = [template.replace("{}", caption) for caption in said for template in self.wording.templates]
        return list(dict.fromkeys([*worded, *([""] if self.wording.dropout else [])]))

    def choose(self, number: int, size: int) -> list[int]:
        """Pictures of batch ``number``: passes over the data, each in an order of its own."""
        count = sum(self.data.repeats)
        places = range(number * size, number * size + size)
        orders = {e: self.data.order(random.Random(f"{self.seed}/pass {e}")) for e in {p // count for p in places}}
        return [orders[p // count][p % count] for p in places]

    def draw(self, index: int, flipped: bool, rng: random.Random) -> tuple[Tensor, Tensor | None]:
        """Latent of a picture and its mask; the latent is kept where the picture looks the same at every draw."""
        picture, mask = self.data.draw(index, flipped, rng, self.backbone.family.cell)
        latent = self.latents.get((index, flipped))
        if latent is None:
            latent = self.backbone.encode_image(picture[None].to(self.backbone.device))[0].float()
            if self.data.fixed:
                self.latents[index, flipped] = latent
        return latent, None if mask is None else F.interpolate(mask[None], latent.shape[-2:], mode="area")[0]


def masks_of(samples: Sequence[Sample]) -> Tensor | None:
    """The masks of samples of one shape, ``[B, 1, h, w]``; ``None`` if all are learned everywhere."""
    if all(s.mask is None for s in samples):
        return None
    first = samples[0].latent
    return torch.stack([torch.ones(1, *first.shape[1:]) if s.mask is None else s.mask for s in samples]).to(first)
