"""DisenDiff: several concepts from one picture, told apart by where their words look (Zhang et al. 2024, arXiv 2403.18551).

The words, layers and rates are those of CIDM, and concepts that are learned together share the factors; what is added is the calibration of
their attention maps and, for pictures with masks, the anchor. The authors train whole keys and values, and a new word before each noun.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...backbone import Backbone
from ...bank.concept import Concept
from ...hub import watch_attention
from ...method.attention import token_maps
from ...method.calibration import calibration, nearest_resolution, stretch
from ...tokens import encode_layerwise, positions_of
from ..batches import Sample
from ..config import check_least
from ..method import Batch, Task
from .cidm import Cidm, CidmConfig, CidmLearner


@dataclass(frozen=True, kw_only=True)
class DisenDiffConfig(CidmConfig):
    """``calibration`` weighs binding and separation: 0.01 is the authors' released setting, 1 the printed one, which destroys what is
    learned on Doodle. ``anchor`` weighs that outside of masks the prediction is the base's of the plain words, beside the error inside.
    Raises ``ValueError`` naming the setting that cannot work.
    """

    calibration: float = 0.01
    anchor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, ("calibration", "anchor"))
        if self.anchor and self.attention:
            raise ValueError(
                f"anchor {self.anchor} with attention {self.attention}: the anchor learns outside of masks too, expected one of them"
            )


class DisenDiffLearner(CidmLearner):
    """A learner whose maps are calibrated in every caption that names all concepts of the task, at whatever noise level was drawn."""

    resting = False  # the factors do not act

    @property
    def settings(self) -> DisenDiffConfig:
        config = self.task.config.method
        assert isinstance(config, DisenDiffConfig)
        return config

    def loss(self, batch: Batch, during: ExitStack) -> tuple[Tensor, Tensor]:
        batch = self.add_anchor(batch)  # before anything is watched, as the base has maps of its own
        named = [self.places_of(text) for text in batch.texts]
        if not self.settings.calibration or not any(named):
            return super().loss(batch, during)
        seen = during.enter_context(watch_attention(self.backbone.cross_attention.values()))
        told, extra = super().loss(batch, during)
        return told, extra + self.settings.calibration * self.calibrate(seen, named, batch.samples)

    def places_of(self, text: str) -> list[tuple[int, int]]:
        """Returns where the modifier and the noun of every concept stand among the tokens of a text; nothing if one is not in it."""
        places = []
        for words in self.words_of.values():
            positions = positions_of(self.backbone, text, words)
            if len(positions) < len(words):
                return []
            places.append((positions[0], positions[-1]))
        return places

    def calibrate(
        self, seen: Sequence[tuple[Tensor, Tensor, int]], named: Sequence[list[tuple[int, int]]], samples: Sequence[Sample]
    ) -> Tensor:
        """Returns binding and separation, summed over the samples that name all concepts."""
        tokens = nearest_resolution([q.shape[1] for q, _, _ in seen])
        layers = [one for one in seen if one[0].shape[1] == tokens]
        total = torch.zeros((), device=self.backbone.device)
        for row, places in enumerate(named):
            if places:
                height, width = samples[row].latent.shape[-2:]
                rows = round((tokens * height / width) ** 0.5)
                maps = stretch(token_maps(layers, row, [p for place in places for p in place], (rows, tokens // rows)))
                total = total + calibration(maps[0::2], maps[1::2])
        return total

    def deltas(self) -> dict[str, Any]:
        acting = super().deltas()
        return {n: (lambda x, f=f: torch.zeros((), dtype=x.dtype, device=x.device) if self.resting else f(x)) for n, f in acting.items()}

    @contextmanager
    def rest(self) -> Iterator[None]:
        """Have the factors not act while this is open."""
        self.resting = True
        try:
            yield
        finally:
            self.resting = False

    def add_anchor(self, batch: Batch) -> Batch:
        """Returns the batch in which what lies outside of masks is learned too, weighed by ``anchor``: there the target is what the base
        predicts of the plain words.
        """
        mask, draw, weight = batch.mask, batch.noised, self.settings.anchor
        if not weight or mask is None:
            return batch
        with torch.no_grad(), self.rest():
            text = encode_layerwise(self.backbone, [self.plain(said) for said in batch.texts], {})
            base = self.backbone.predict(draw.x, draw.t, text.context, text.pooled).float()
        noised = replace(draw, target=mask * draw.target + (1 - mask) * base)
        everywhere = [replace(sample, mask=own + weight * (1 - own)) for sample, own in zip(batch.samples, mask, strict=True)]
        return replace(batch, noised=noised, samples=everywhere)

    def plain(self, text: str) -> str:
        """Returns a text with the class words in place of the concepts' words."""
        for name, words in self.words_of.items():
            text = text.replace(" ".join(words), self.task.concepts[name])
        return text


class DisenDiff(Cidm):
    """DisenDiff learns for 250 steps, as its authors do."""

    name, config, learner = "disendiff", DisenDiffConfig, DisenDiffLearner
    defaults = {"steps": 250}
    states_all = False

    def make_learner(self, backbone: Backbone, task: Task, earlier: Sequence[Concept], generator: torch.Generator) -> DisenDiffLearner:
        return DisenDiffLearner(backbone, task, self.words_by_name(task), [c.factors for c in earlier], generator)
