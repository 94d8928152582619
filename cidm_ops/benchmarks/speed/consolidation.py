"""What earlier concepts cost a training step: 0, 1, 10 and 100 of them, by ``corrected`` and by ``released_code``."""

from functools import partial
from itertools import product
from typing import Any

import torch

from ...adapters import linears
from ...models.sd import SD1
from ...training.dataset import Dataset
from ...training.memory import Bf16Weights
from ...training.method import Task
from ...training.methods import configure
from ...training.trainer import Trainer
from .models import random_backbone, random_concepts
from .timing import figures, interleave, machine, peak_memory, ratio

MODES = ("corrected", "released_code")
COUNTS = (0, 1, 10, 100)


def run(rounds: int = 7, pixels: int = 256) -> dict[str, Any]:
    """Steps of full-size SD1.5 (random weights), one picture of ``pixels`` each; ``*_gb`` is the peak of a step, ``*_mb`` what the term
    itself holds. The ratios are of time and of peak memory, with a hundred earlier concepts to none.
    """
    backbone = random_backbone(SD1)
    layers: dict[str, Any] = linears(backbone, "cross_attention")
    concepts = random_concepts(backbone, {n: tuple(layer.weight.shape) for n, layer in layers.items()}, max(COUNTS))
    data = Dataset([torch.rand(3, pixels, pixels)], ["a dog"])

    def new_run(mode: str, count: int) -> Trainer:
        config = configure("cidm", steps=10_000, batch=1, mode=mode, norm_stop=0.0)  # the words stop at once: the rest is all U-Net
        run = Trainer(backbone, data, Task(name="x", class_word="dog", config=config), earlier=concepts[:count])
        run.bf16_weights = bf16_weights  # one copy of the weights for all
        return run

    bf16_weights = Bf16Weights([backbone.unet])
    memory: dict[str, float] = {}
    for mode, count in product(MODES, COUNTS):
        run = new_run(mode, count)
        step(run)
        memory[f"{mode}_{count}_gb"] = peak_memory(partial(step, run))
        memory[f"{mode}_{count}_mb"] = round(held_by(run.learner.regularizer) / 2**20, 2)
        del run
    runs = {f"{mode}_{count}": new_run(mode, count) for mode, count in product(MODES, COUNTS)}
    times = interleave({name: partial(step, run) for name, run in runs.items()}, rounds)
    ratios = {}
    for mode in MODES:
        ratios[f"{mode}_ratio_100_to_0"] = ratio(times, f"{mode}_100", f"{mode}_0")
        ratios[f"{mode}_memory_ratio_100_to_0"] = round(memory[f"{mode}_100_gb"] / memory[f"{mode}_0_gb"], 4)
    headline = {"ratio_100_to_0": ratios["corrected_ratio_100_to_0"], "memory_ratio_100_to_0": ratios["corrected_memory_ratio_100_to_0"]}
    return headline | ratios | figures(times) | memory | {"pixels": pixels, "rounds": rounds} | machine()


def step(run: Trainer) -> None:
    with run.attach():
        run.advance()


def held_by(term: Any) -> int:
    """Bytes of the tensors that a consolidation term keeps."""
    tensors = list(getattr(term, "bases", {}).values())
    for factors in getattr(term, "earlier", []):
        tensors += [f.up for f in factors.values()]
    return sum(t.nbytes for t in tensors)
