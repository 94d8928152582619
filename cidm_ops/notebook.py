"""What a notebook needs, as ``import cidm_ops`` gives it: a base model, concepts learned from images, images painted, scores.

Each function is a few calls of the rooms below with their defaults; who needs more takes those.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .backbone import Backbone, TransformerBackbone
from .bank.bank import Bank
from .engines.diffusers import fastest_device, load_any
from .engines.towers import load_tower
from .evaluation.protocol import EvaluationTask, SampleSettings, claim, embed_task, missing, paint_missing, usual_guidance
from .evaluation.results import Report, write
from .measure.report import to_pixels
from .method.regions import RegionMask, box_mask
from .painting.paint import SamplingConfig, paint, unit_noise
from .training.config import TrainingConfig
from .training.dataset import Dataset
from .training.folder import from_folder
from .training.method import Task
from .training.methods import configure
from .training.task import learn_into

Box = tuple[float, float, float, float]  # left, top, right, bottom, from 0 to 1


def load(base: str | Path = "doodle", device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """Loads a base model, a ``Backbone`` or a ``TransformerBackbone``: "doodle", a diffusers folder, or a .safetensors or .ckpt file. It
    takes the fastest device there is unless told, and half precision on CUDA only.

    Raises ``FileNotFoundError`` if there is nothing of that name and ``ValueError`` if it is no complete model of a known family.
    """
    place = torch.device(device) if device else fastest_device()
    return load_any(base, place, dtype or (torch.bfloat16 if place.type == "cuda" else torch.float32))


def train(
    base: Backbone | TransformerBackbone,
    bank: Bank,
    images: Dataset | Path | str,
    name: str,
    class_word: str,
    config: TrainingConfig | None = None,
    on_step: Callable[[Any], None] = lambda trainer: None,
) -> Bank:
    """Learns a concept from a dataset or a folder of images, after those that the bank has, and returns the bank with it.

    ``config`` comes from ``configure("cidm", steps=800, ...)``. What a person should know, and where a run that was stopped goes on, comes
    as a ``UserWarning``. Raises ``ValueError`` for what cannot be learned, before the first step.
    """
    data = images if isinstance(images, Dataset) else from_folder(images, base.family.size)
    task = Task(name=name, class_word=class_word, config=config or configure("cidm" if base.family.layerwise else "lora"))
    told: list[str] = []

    def tell(said: str) -> None:
        if said not in told:
            told.append(said)
            warnings.warn(said, stacklevel=4)

    learned = learn_into(bank, base, data, task, on_step=on_step, tell=tell)
    for said in learned.warnings:
        tell(said)
    return learned.bank


def generate(
    base: Backbone | TransformerBackbone,
    bank: Bank,
    prompt: str,
    regions: Mapping[Box, str] | None = None,
    config: SamplingConfig | None = None,
    seeds: Sequence[int] = (0,),
    size: int | tuple[int, int] | None = None,
) -> list[Image.Image]:
    """Paints a prompt with the concepts of a bank, an image for each seed; ``regions`` are prompts by their boxes, ``size`` is an image's
    side in pixels, or width and height.

    Raises ``ValueError`` for a word that no concept has and for a box that is none.
    """
    width, height = size if isinstance(size, tuple) else (size or base.family.size,) * 2
    noise = torch.cat([unit_noise(base.family, seed, 1, height, width) for seed in seeds])
    placed = [(text, RegionMask(box_mask(*box))) for box, text in (regions or {}).items()]
    images, remarks = paint(base, bank, prompt, noise, config, placed)
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    return [Image.fromarray(pixels) for pixels in to_pixels(images)]


def evaluate(
    base: Backbone,
    bank: Bank,
    prompts: Sequence[str],
    references: Mapping[str, Dataset | Path | str],
    folder: Path | str,
    vision: str | Path = "doodle",
    samples: int = 4,
) -> dict[str, Any]:
    """Paints every concept of ``references`` in every prompt, ``<TOK>`` where it stands, scores the images against its references by an
    image tower, and writes a report into the folder, where what is there is not made again. Returns the figures.
    """
    out, side = Path(folder), base.family.size
    data = {name: own if isinstance(own, Dataset) else from_folder(own, side) for name, own in references.items()}
    for name, own in data.items():
        for remark in own.warnings:
            if "no caption file" not in remark:
                warnings.warn(f"references of {name!r}: {remark}", stacklevel=2)
    tasks = [
        EvaluationTask(name, bank.headers[name]["class_word"], prompts, [p * 2 - 1 for p in own.pictures]) for name, own in data.items()
    ]
    sampling, seeds, tower = SampleSettings(side, guidance=usual_guidance(base.family)), range(samples), load_tower(str(vision))
    claim(out, base, sampling, bank, list(data))
    paint_missing(out, base, bank, missing(out, tasks, seeds), sampling)
    seen = {task.name: embed_task(out, tower, task, seeds) for task in tasks}
    return write(out, tasks, seen, seeds, Report({"vision": str(vision), "samples_per_prompt": samples, **vars(sampling)}))
