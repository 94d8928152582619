"""Training steps inside a ComfyUI: ``python host_steps.py PACK OUT CHECKPOINT SIDE ROUNDS PIXELS``.

SIDE is ``ours``, ``host`` or ``both`` in turns. A step is what lies between two steps of an optimiser, whoever's it is.
"""

import resource
import time
from typing import Any

from in_host import ARGUMENTS, tell

# isort: split

import comfy.sd
import torch
from comfy_extras import nodes_train
from pack.cidm_ops.benchmarks.speed.reading import read_texts
from pack.cidm_ops.benchmarks.speed.timing import figures, ratio
from pack.cidm_ops.training.dataset import Dataset
from pack.cidm_ops.training.method import Task
from pack.cidm_ops.training.methods import configure
from pack.cidm_ops.training.trainer import Trainer
from pack.nodes.host import ComfyBackbone
from torch.optim.optimizer import register_optimizer_step_post_hook

CHECKPOINT, SIDE = ARGUMENTS[:2]
ROUNDS, PIXELS = map(int, ARGUMENTS[2:])
STEPS = 3  # a call; the first one sets up and does not count


def host_trainer(model, clip, vae):
    """The host's Train LoRA node with its defaults, gradient checkpointing off."""
    node = nodes_train.TrainLoraNode
    inputs = {}
    for name, (kind, *options) in node.INPUT_TYPES()["required"].items():
        choices = kind if isinstance(kind, list) else (options[0].get("options") or [None]) if options else [None]
        inputs[name] = options[0].get("default", choices[-1]) if options else choices[-1]
    inputs |= {
        "model": model,
        "latents": {"samples": vae.encode(torch.rand(1, PIXELS, PIXELS, 3))},
        "positive": clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a dog")),
        "steps": STEPS,
        "gradient_checkpointing": False,
        "existing_lora": "[None]",
    }
    if getattr(node, "INPUT_IS_LIST", False):
        inputs = {name: [value] for name, value in inputs.items()}
    return lambda: getattr(node(), node.FUNCTION)(**inputs)


def our_trainer(model, clip, vae, norm_stop):
    """Train Concept's own loop with the paper's recipe."""
    backbone = ComfyBackbone(model, clip, vae)
    data = Dataset([torch.rand(3, PIXELS, PIXELS)], ["a dog"])
    config = configure("cidm", steps=10_000, batch=1, norm_stop=norm_stop)
    run = Trainer(backbone, data, Task(name="x", class_word="dog", config=config))
    read_texts(run)

    def call():
        with torch.inference_mode(False), run.attach():
            for _ in range(STEPS):
                run.advance()

    return call


def main():
    stamps = []
    register_optimizer_step_post_hook(lambda *_: stamps.append(time.perf_counter()))
    with torch.inference_mode():  # as the executor does
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(CHECKPOINT)
        sides: dict[str, Any] = {}
        if SIDE != "host":
            with torch.inference_mode(False):
                sides |= {"ours": our_trainer(model, clip, vae, 1e9)}
                if SIDE == "both":
                    sides |= {"ours_frozen": our_trainer(model, clip, vae, 0.0)}
        if SIDE != "ours":
            sides["host"] = host_trainer(model, clip, vae)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, call in sides.items():
                stamps.clear()
                call()
                times[name] += [b - a for a, b in zip(stamps, stamps[1:], strict=False)]
    result: dict[str, Any] = {"peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}
    if SIDE == "both":
        result |= {"time_ratio": ratio(times, "ours", "host"), "frozen_time_ratio": ratio(times, "ours_frozen", "host")}
    tell(result | figures(times))


main()
