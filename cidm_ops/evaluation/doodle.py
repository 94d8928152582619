"""How a concept of the Doodle world is taught, painted and scored: the same in the demo and in every benchmark."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone
from ..bank.bank import Bank
from ..doodle.concepts import CONCEPTS, DoodleConcept, Example, examples
from ..engines.diffusers import load
from ..engines.doodle import DoodleReader, DoodleTower
from ..engines.parts import PartsJudge
from ..measure.report import from_pixels
from ..measure.scores import ImageEncoder, embed, image_alignment, text_alignment
from ..models.sd import DOODLE
from ..painting.compose import AggregationConfig
from ..painting.paint import SamplingConfig, paint, unit_noise
from ..training.dataset import Dataset
from ..training.methods import configure_for
from .parts import identity_by_parts, judged, look_of, score_parts

PLACES = ("on the beach", "in the snow", "in a meadow", "on the street")
PICTURES, HELD_OUT, SEED = 6, 16, 1000
# The world's places are in the pictures, so the whole picture is learned, and guidance stays low.
RECIPE, INFUSED = configure_for(DOODLE, "cidm"), configure_for(DOODLE, "infusion")
GUIDANCE = 2.0


def training_pictures(concept: DoodleConcept, masked: bool = False) -> Dataset:
    """The pictures and captions that a concept is learned from."""
    shown = examples(concept, PICTURES)
    masks = [torch.from_numpy(e.mask)[None].float() / 255 for e in shown] if masked else []
    return Dataset(list(pictured(shown) / 2 + 0.5), [e.caption for e in shown], masks)


def pictured(shown: list[Example]) -> Tensor:
    """Renderings as pictures ``[N, 3, 128, 128]`` in [-1, 1]."""
    return from_pixels(np.stack([e.picture for e in shown]))


class DoodleBench:
    """A Doodle, the one that ships unless another is given, an image tower, and the references of each concept; and a judge of parts, if
    there is one.
    """

    def __init__(self, base: str | Path = "doodle", tower: ImageEncoder | None = None, judge: PartsJudge | None = None) -> None:
        self.backbone: Backbone = load(base)
        self.tower: ImageEncoder = tower or DoodleTower()
        self.judge = judge
        self.known: dict[str, Tensor] = {}

    @cached_property
    def reader(self) -> DoodleReader:
        return DoodleReader()

    def references(self, name: str) -> Tensor:
        """Embeddings ``[HELD_OUT, E]`` of renderings that no training sees."""
        if name not in self.known:
            self.known[name] = embed(self.tower, pictured(examples(CONCEPTS[name], HELD_OUT, seed=1)))
        return self.known[name]

    def paint(self, bank: Bank, name: str, subject: str, seeds: int = 2, mode: str = "exact") -> Tensor:
        """``subject`` (concept ``name`` or its plain word) in every place, ``[places * seeds, 3, 128, 128]``, places in turn."""
        noise = unit_noise(self.backbone.family, SEED, seeds, 128, 128)
        config = SamplingConfig(guidance=GUIDANCE, aggregation=AggregationConfig(mode=mode))
        by_place = [paint(self.backbone, bank, scene(name, subject, p), noise, config)[0] for p in PLACES]
        return torch.stack(by_place, 1).flatten(0, 1)

    def ia(self, name: str, pictures: Tensor) -> float:
        """Image alignment of pictures with the held-out renderings of a concept."""
        return image_alignment(embed(self.tower, pictures), self.references(name))

    def parts(self, name: str, pictures: Tensor) -> float | None:
        """Identity by parts of the pictures of ``paint``; None without a judge, and for a style."""
        if self.judge is None or not judged(name):
            return None
        return score_parts(identity_by_parts(self.judge, look_of(name), pictures)).mean.value

    def ta(self, name: str, pictures: Tensor) -> float:
        """Text alignment of the pictures of ``paint`` with what their prompts say in plain words."""
        words = [scene(name, CONCEPTS[name].class_word, place) for place in PLACES]
        texts = F.normalize(self.reader.captions(words), dim=-1).repeat(len(pictures) // len(PLACES), 1)
        return text_alignment(embed(self.reader, pictures), texts)


def scene(name: str, subject: str, place: str) -> str:
    """A prompt: a thing stands somewhere, a style shows a thing that stands somewhere."""
    return f"a {subject} {place}" if CONCEPTS[name].look else f"a {subject} of a red dog {place}"
