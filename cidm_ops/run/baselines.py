"""Other ways to learn concepts one after another, for comparison: one LoRA for all (alone, with EWC, with LwF), and C-LoRA.

Written from their papers. They have the words, layers, steps and rates of CIDM, so that they differ from it in what they keep alone; a
concept's file holds its own words and the shared LoRA as it was after its task. ``recipe.consolidation`` weighs what each adds to the loss.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..adapters import attached, linears
from ..bank.concept import Concept
from ..bank.files import packed, write_atomically
from ..causal import attention_layers
from ..lowrank import LowRank, Stack
from ..method.aggregation import spoken_as, tables_of
from ..method.continual import ElasticWeights, SelfRegularised, named
from ..tokens import Text, encode_layerwise
from .learner import Learner
from .material import Sample
from .objective import Noised
from .training import Run

FISHER_DRAWS = 64  # pictures that the Fisher information of a task is measured on


class OneLora(Run):
    """Sequential fine-tuning: each task goes on from the factors of the one before."""

    def begun(self, earlier: Sequence[Mapping[str, LowRank]], generator: torch.Generator) -> Learner:
        learner = super().begun([], generator)
        if earlier:
            with torch.no_grad():
                for name, f in learner.factors().items():
                    f.up.copy_(earlier[-1][name].up / learner.scale)
                    f.down.copy_(earlier[-1][name].down)
        return learner


class Elastic(OneLora):
    """With EWC: entries that mattered to earlier tasks are held. ``folder`` keeps the Fisher information of each task."""

    def __init__(self, *args: Any, folder: Path, earlier: Sequence[Concept] = (), **options: Any):
        super().__init__(*args, earlier=earlier, **options)
        self.folder = folder
        self.term = ElasticWeights([load_file(folder / f"{concept.name}.safetensors") for concept in earlier])

    def measure(self, name: str) -> None:
        """Write the diagonal of the Fisher information of this task (squared gradients of single pictures), inside ``attached``."""
        entries = named(self.learner.factors())
        found = {n: torch.zeros_like(p) for n, p in entries.items()}
        for number in range(FISHER_DRAWS):
            self.optimiser.zero_grad(set_to_none=True)
            self.accumulate(*self.material.batch(-1 - number, 1))
            for n, p in entries.items():
                if p.grad is not None:
                    found[n] += (p.grad / self.means.scale).square() / FISHER_DRAWS
        state = {f"fisher.{n}": f for n, f in found.items()} | {f"at.{n}": p.detach() for n, p in entries.items()}
        write_atomically(packed({k: v.cpu().contiguous() for k, v in state.items()}, {}), self.folder / f"{name}.safetensors")


class WithoutForgetting(OneLora):
    """With LwF (Li & Hoiem 2016): on the new pictures, prompts of earlier concepts are answered as they were before this task."""

    def __init__(self, *args: Any, earlier: Sequence[Concept] = (), **options: Any):
        super().__init__(*args, earlier=earlier, **options)
        self.earlier = list(earlier)
        self.before = {n: f.to(self.backbone.device) for n, f in earlier[-1].factors.items()} if earlier else {}
        self.as_before = False
        self.said: dict[str, Text] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        now = self.learner.deltas()

        def delta(name: str) -> Callable[[Tensor], Tensor]:
            return lambda x: (self.before if self.as_before else now)[name](x)

        layers = {**linears(self.backbone), **attention_layers(self.backbone.texts)}
        with attached(layers, {name: delta(name) for name in now}):
            yield

    def loss(self, draw: Noised, samples: Sequence[Sample], during: ExitStack) -> tuple[Tensor, Tensor]:
        told, more = super().loss(draw, samples, during)
        if not self.earlier:
            return told, more
        some = draw.part(slice(0, (len(samples) + 1) // 2))  # half of them, to stay near the others' time
        text = self.earlier_text(random.Random(f"{self.recipe.seed}/{self.step}")).expand(len(some.x))
        self.as_before = True
        with torch.no_grad():
            wanted = self.backbone.predict(some.x, some.t, text.context, text.pooled)
        self.as_before = False
        apart = (self.backbone.predict(some.x, some.t, text.context, text.pooled) - wanted).float().square().mean()
        return told, more + self.recipe.consolidation * len(samples) * apart

    def earlier_text(self, rng: random.Random) -> Text:
        """A plain view of an earlier concept, encoded for every layer."""
        concept = rng.choice(self.earlier)
        prompt = rng.choice(self.recipe.templates).replace("{}", spoken_as(concept))
        if prompt not in self.said:
            with torch.no_grad():
                self.said[prompt] = encode_layerwise(self.backbone, [prompt], tables_of([concept]))
        return self.said[prompt]


class SelfRegularisedLora(Run):
    """C-LoRA: a LoRA of its own for each task on top of all earlier ones, kept from changing the same weights."""

    def __init__(self, *args: Any, earlier: Sequence[Concept] = (), **options: Any):
        super().__init__(*args, earlier=earlier, **options)
        factors = [concept.factors for concept in earlier]
        self.term = SelfRegularised(factors)
        stacks = {n: Stack.of([f[n] for f in factors]) for n in (factors[0] if factors else {})}
        self.below = {n: stack.merged(torch.ones(len(factors))).to(self.backbone.device) for n, stack in stacks.items()}

    @contextmanager
    def attached(self) -> Iterator[None]:
        with attached(linears(self.backbone), self.below), super().attached():
            yield
