"""CLIF's contrast as a term of training: the words of a concept follow its pictures in an image tower's space while the model learns it
(Lin et al. 2024; the term is ours, since the paper lets training undo what its contrast did).

Everything else is CIDM. The term is computed on the mean of the rows that layers read, and ends when the words stop learning.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from ...backbone import Backbone
from ...bank.concept import Concept
from ..canvases import Lesson, canvases_of
from ..comparison import Comparison, speeches
from ..config import TrainingConfig, check_least
from ..dataset import Dataset
from ..method import Batch, Task
from .cidm import Cidm, CidmConfig, CidmLearner


@dataclass(frozen=True, kw_only=True)
class ClifConfig(CidmConfig):
    """``contrast_weight`` weighs the term, of ``contrast_batch`` canvases a step out of so many ``canvases`` that are drawn once. Raises
    ``ValueError`` naming the setting that cannot work.
    """

    contrast_weight: float = 0.01
    contrast_batch: int = 16
    canvases: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 0, ("contrast_weight",))
        check_least(self, 1, ("contrast_batch", "canvases"))

    def check_training(self, training: TrainingConfig) -> None:
        if self.contrast_weight and training.kind == "style":
            raise ValueError(f"contrast_weight {self.contrast_weight:g} for a style: it has nothing to cut out, expected 0")


class ClifLearner(CidmLearner):
    """A learner whose words are contrasted with those of ``frozen`` concepts, and with the plain class word."""

    frozen: Sequence[Concept] = ()
    comparison: Comparison | None = None

    @property
    def settings(self) -> ClifConfig:
        config = self.task.config.method
        assert isinstance(config, ClifConfig)
        return config

    def look_at(self, data: Dataset) -> None:
        """Draws the canvases, and sees them in every space. Raises ``ValueError`` if the task has none."""
        if not self.settings.contrast_weight:
            return
        by, settings = self.task.contrast, self.settings
        if by is None:
            raise ValueError("the method clif compares pictures with words: give an image tower that the base's text encoder leads to")
        lesson = Lesson(self.task.name, self.task.class_word, data)
        canvases = canvases_of([lesson], self.words_of, by.common, settings.canvases, by.side, self.task.config.seed)
        others = speeches(self.frozen, [self.task.class_word], self.backbone.encoders, self.backbone.device)
        self.comparison = Comparison(self.backbone, by, canvases, others)

    def loss(self, batch: Batch, during: ExitStack) -> tuple[Tensor, Tensor]:
        told, extra = super().loss(batch, during)
        if self.comparison is None or not self.words_learn:
            return told, extra
        rng = random.Random(f"{self.task.config.seed}/contrast/{batch.step}")
        term = self.comparison.loss(self.mean_rows(), self.settings.contrast_batch, rng)
        return told, extra + self.settings.contrast_weight * len(batch.samples) * term

    def mean_rows(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Returns the mean row ``[D]`` of each word over the layers, by encoder."""
        read = list(self.layers)
        return {e: dict(zip(self.words, table[:, read].mean(1), strict=True)) for e, table in self.tokens.items()}


class Clif(Cidm):
    name, config, learner = "clif", ClifConfig, ClifLearner
    joint = states_all = False
    contrasts = True

    def make_learner(self, backbone: Backbone, task: Task, earlier: Sequence[Concept], generator: torch.Generator) -> ClifLearner:
        learner = ClifLearner(backbone, task, self.words_by_name(task), [c.factors for c in earlier], generator)
        learner.frozen = earlier
        return learner
