"""Other ways to learn concepts one after another, for comparison: one LoRA for all (alone, with EWC, with LwF), and C-LoRA.

Written from their papers. They have the words, layers, steps and rates of CIDM, so that they differ from it in what they keep alone; a
concept's file holds its own words and the shared LoRA as it was after its task. ``consolidation`` weighs what each adds to the loss.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...backbone import Backbone
from ...bank.concept import Concept
from ...bank.files import write_atomically
from ...bank.formats import packed
from ...lowrank import Stack
from ...method.aggregation import spoken_as, tables_of
from ...method.consolidation import Consolidation
from ...method.continual import ElasticWeights, SelfRegularised, name_factors
from ...painting.config import EVERYWHERE
from ...tokens import Text, encode_layerwise
from ..method import Batch, Task
from ..trainer import Trainer
from .cidm import Cidm, CidmLearner
from .lora import Lora, LoraLearner

FISHER_DRAWS = 64  # pictures that the Fisher information of a task is measured on


def check_everywhere(learner: CidmLearner) -> CidmLearner:
    """Returns the learner. Raises ``ValueError`` if it is to act at some words only: these methods are compared as LoRAs, which do not."""
    if learner.limited:
        raise ValueError(f"reach {learner.settings.reach!r}: this method's factors act at all words, expected {EVERYWHERE}")
    return learner


def continue_from(learner: CidmLearner, earlier: Sequence[Concept]) -> CidmLearner:
    """Returns the learner with the factors of the task before it. Raises what ``check_everywhere`` does."""
    check_everywhere(learner)
    if earlier:
        learner.copy_factors(earlier[-1].factors)
    return learner


class SequentialLora(Cidm):
    """Sequential fine-tuning: each task goes on from the factors of the one before."""

    def make_learner(self, backbone: Backbone, task: Task, earlier: Sequence[Concept], generator: torch.Generator) -> CidmLearner:
        words = self.words_by_name(task)
        return continue_from(CidmLearner(backbone, task, words, [], generator, Consolidation()), earlier)


class SequentialJointLora(Lora):
    """Sequential fine-tuning on transformers in which all layers read one text."""

    def make_learner(self, backbone: Any, task: Task, earlier: Sequence[Concept], generator: torch.Generator) -> LoraLearner:
        learner = super().make_learner(backbone, task, [], generator)
        if earlier:
            learner.begin(earlier[-1])
        return learner


class ElasticLora(Cidm):
    """EWC holds entries that mattered to earlier tasks. ``folder`` keeps the Fisher information of each task."""

    def __init__(self, folder: Path):
        self.folder = folder

    def make_learner(self, backbone: Backbone, task: Task, earlier: Sequence[Concept], generator: torch.Generator) -> CidmLearner:
        held = ElasticWeights([load_file(self.folder / f"{concept.name}.safetensors") for concept in earlier])
        return continue_from(CidmLearner(backbone, task, self.words_by_name(task), [], generator, held), earlier)

    def finish(self, trainer: Trainer) -> None:
        """Writes the diagonal of the Fisher information of a task: squared gradients of single pictures."""
        entries = name_factors(trainer.learner.factors())
        found = {n: torch.zeros_like(p) for n, p in entries.items()}
        for number in range(FISHER_DRAWS):
            trainer.optimizer.zero_grad(set_to_none=True)
            trainer.accumulate(*trainer.batches.batch(-1 - number, 1))
            for n, p in entries.items():
                if p.grad is not None:
                    found[n] += (p.grad / trainer.plan.scale).square() / FISHER_DRAWS
        state = {f"fisher.{n}": f for n, f in found.items()} | {f"at.{n}": p.detach() for n, p in entries.items()}
        data = packed({k: v.cpu().contiguous() for k, v in state.items()}, {})
        write_atomically(data, self.folder / f"{trainer.task.name}.safetensors")


class DistilledLora(Cidm):
    """LwF (Li & Hoiem 2016) has prompts of earlier concepts answered on the new pictures as they were before this task."""

    def make_learner(self, backbone: Backbone, task: Task, earlier: Sequence[Concept], generator: torch.Generator) -> CidmLearner:
        return continue_from(DistilledLearner(backbone, task, self.words_by_name(task), earlier, generator), earlier)


class DistilledLearner(CidmLearner):
    """A learner that also answers as the factors ``before`` its task did; those act instead of its own while ``as_before`` is set."""

    def __init__(
        self, backbone: Backbone, task: Task, words: Mapping[str, Sequence[str]], earlier: Sequence[Concept], generator: torch.Generator
    ):
        super().__init__(backbone, task, words, [], generator, Consolidation())
        self.earlier = list(earlier)
        self.before = {n: f.to(backbone.device) for n, f in earlier[-1].factors.items()} if earlier else {}
        self.as_before = False
        self.said: dict[str, Text] = {}

    def deltas(self) -> dict[str, Any]:
        now = super().deltas()

        def delta(name: str) -> Callable[[Tensor], Tensor]:
            return lambda x: (self.before if self.as_before else now)[name](x)

        return {name: delta(name) for name in now}

    def loss(self, batch: Batch, during: ExitStack) -> tuple[Tensor, Tensor]:
        told, extra = super().loss(batch, during)
        if not self.earlier:
            return told, extra
        count = len(batch.samples)
        some = batch.noised.part(slice(0, (count + 1) // 2))  # half of them, to stay near the others' time
        text = self.earlier_text(random.Random(f"{self.task.config.seed}/{batch.step}")).expand(len(some.x))
        self.as_before = True
        try:
            with torch.no_grad():
                wanted = self.backbone.predict(some.x, some.t, text.context, text.pooled)
        finally:
            self.as_before = False
        apart = (self.backbone.predict(some.x, some.t, text.context, text.pooled) - wanted).float().square().mean()
        return told, extra + self.settings.consolidation * count * apart

    def earlier_text(self, rng: random.Random) -> Text:
        """Returns a plain view of an earlier concept, encoded for every layer."""
        concept = rng.choice(self.earlier)
        prompt = rng.choice(self.task.config.templates).replace("{}", spoken_as(concept))
        if prompt not in self.said:
            with torch.no_grad():
                self.said[prompt] = encode_layerwise(self.backbone, [prompt], tables_of([concept]))
        return self.said[prompt]


class SelfRegularizedLora(Cidm):
    """C-LoRA: a LoRA of its own for each task on top of all earlier ones, kept from changing the same weights."""

    def make_learner(self, backbone: Backbone, task: Task, earlier: Sequence[Concept], generator: torch.Generator) -> CidmLearner:
        factors = [concept.factors for concept in earlier]
        stacks = {n: Stack.of([f[n] for f in factors]) for n in (factors[0] if factors else {})}
        below = {n: stack.merge(torch.ones(len(factors))) for n, stack in stacks.items()}
        words = self.words_by_name(task)
        return check_everywhere(CidmLearner(backbone, task, words, factors, generator, SelfRegularised(factors), below))
