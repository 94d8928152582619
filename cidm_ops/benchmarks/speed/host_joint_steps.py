"""Training steps on a transformer inside a ComfyUI: ``python host_joint_steps.py PACK OUT FAMILY SIDE ROUNDS PIXELS``.

SIDE is ``ours``, ``host`` or ``both`` in turns; a step is what lies between two steps of an optimiser, whoever's it is. Both sides compute
parts of the model again in the backward pass, each in its own way.
"""

import resource
import time
from types import SimpleNamespace
from typing import Any

from in_host import ARGUMENTS, tell

# isort: split

import torch
from comfy_extras import nodes_train
from pack.cidm_ops.benchmarks.speed.host_joint_model import MODELS, build, random_latents, text
from pack.cidm_ops.benchmarks.speed.timing import figures, ratio
from pack.cidm_ops.training.dataset import Dataset
from pack.cidm_ops.training.method import Task
from pack.cidm_ops.training.methods import configure
from pack.cidm_ops.training.trainer import Trainer
from pack.nodes.joint_learning import ComfyTransformerBackbone
from torch.optim.optimizer import register_optimizer_step_post_hook

FAMILY, SIDE = ARGUMENTS[:2]
ROUNDS, PIXELS = map(int, ARGUMENTS[2:])
STEPS, LENGTH, RANK = 3, 256, 16  # steps of a call: the first one sets up and does not count


class RandomTexts(ComfyTransformerBackbone):
    """A model without its text encoders and autoencoder, of which training uses nothing after the first step."""

    def __init__(self, model: Any):
        super().__init__(model, SimpleNamespace(cond_stage_model=None), SimpleNamespace(encode=encode))

    def read(self, said: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        ((states, more),) = text(FAMILY, LENGTH)
        return states, more.get("pooled_output")


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """Random latents of pictures."""
    return random_latents(FAMILY, len(pixels), pixels.shape[1])


def host_trainer(model: Any) -> Any:
    """The host's Train LoRA node with its defaults, at our rank."""
    node = nodes_train.TrainLoraNode
    inputs: dict[str, Any] = {}
    for name, (kind, *options) in node.INPUT_TYPES()["required"].items():
        choices = kind if isinstance(kind, list) else (options[0].get("options") or [None]) if options else [None]
        inputs[name] = options[0].get("default", choices[-1]) if options else choices[-1]
    inputs |= {
        "model": model,
        "latents": {"samples": random_latents(FAMILY, 1, PIXELS)},
        "positive": text(FAMILY, LENGTH),
        "steps": STEPS,
        "rank": RANK,
        "existing_lora": "[None]",
    }
    if getattr(node, "INPUT_IS_LIST", False):
        inputs = {name: [value] for name, value in inputs.items()}
    return lambda: getattr(node(), node.FUNCTION)(**inputs)


def our_trainer(model: Any) -> Any:
    """Train Concept's own loop with its defaults."""
    config = configure("lora", steps=10_000, rank=RANK)
    run = Trainer(RandomTexts(model), Dataset([torch.rand(3, PIXELS, PIXELS)], ["a dog"]), Task(name="x", class_word="dog", config=config))

    def call() -> None:
        with torch.inference_mode(False), torch.enable_grad(), run.attach():
            for _ in range(STEPS):
                run.advance()

    return call


def main() -> None:
    stamps: list[float] = []
    register_optimizer_step_post_hook(lambda *_: stamps.append(time.perf_counter()))
    with torch.inference_mode():  # as the executor does
        model = build(FAMILY)
        sides: dict[str, Any] = {}
        if SIDE != "host":
            with torch.inference_mode(False):
                sides["ours"] = our_trainer(model)
        if SIDE != "ours":
            sides["host"] = host_trainer(model)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, call in sides.items():
                stamps.clear()
                call()
                times[name] += [b - a for a, b in zip(stamps, stamps[1:], strict=False)]
    result: dict[str, Any] = {"peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3), "model": MODELS[FAMILY][0]}
    if SIDE == "both":
        result["time_ratio"] = ratio(times, "ours", "host")
    tell(result | figures(times))


main()
