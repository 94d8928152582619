"""What is learned in a benchmark, in which order, and what is asked of it: Doodle's ten tasks, or the paper's photos."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ...backbone import Backbone, TransformerBackbone
from ...doodle.concepts import CONCEPTS, DoodleConcept
from ...doodle.world import render
from ...engines.towers import Tower
from ...evaluation.doodle import INFUSED, RECIPE, training_pictures
from ...evaluation.protocol import EvaluationTask, SampleSettings, doodle_references, read_prompts, references_in, usual_guidance
from ...grammar import article
from ...measure.report import from_pixels
from ...measure.scores import embed_all, mean_length
from ...models.family import Family
from ...text_file import read_text
from ...training.config import TrainingConfig
from ...training.dataset import Dataset
from ...training.folder import LARGEST_CAPTION, from_folder
from ...training.methods import configure, configure_for, method_of
from .asked import scene_of

THINGS = (
    "{} on the beach", "{} in the snow", "{} at night", "{} in the forest", "{} on the street",
    "a painting of {}", "a drawing of {}", "an ink painting of {}", "a painting of {} in a meadow", "a pencil drawing of {} in the snow",
    "{} next to a red cup", "{} next to a yellow car on the street", "{} and a purple tree in a meadow",
    "{} on the left and a green boat on the right", "a blue house on the left and {} on the right in the snow",
    "{} on the left", "{} on the right in the snow", "a photo of {}", "a picture of {} in a meadow", "{}, flat vector art",
)  # fmt: skip
# Without colours: a wash or ink may have none.
STYLES = (
    "{} of a dog on the beach", "{} of a cat in the snow", "{} of a duck at night", "{} of a boat in the forest",
    "{} of a car on the street", "{} of a cup in a meadow", "{} of a teddy bear", "{} of a house in the snow",
    "{} of a tree in a meadow", "{} of a backpack on the beach", "{} of a dog and a cat", "{} of a cup next to a duck",
    "{} of a boat on the left and a car on the right", "{} of a house next to a tree in the snow",
    "{} of a teddy bear and a cup on the beach", "{} of a car on the left", "{} of a duck on the right", "{} of a dog",
    "{} of a cat on the street", "{} of a dog at night",
)  # fmt: skip
# The paper's ten tasks in its order: folder, class word, prompts.
CIFC = (
    ("dog", "dog", "pet"), ("duck_toy", "duck toy", "plushy"), ("cat", "cat", "pet"), ("backpack", "backpack", "plushy"),
    ("teddybear", "teddy bear", "plushy"), ("painting", "painting", "style"), ("dog2", "dog", "pet"), ("drawing", "drawing", "style"),
    ("cat2", "cat", "pet"), ("ink_painting", "ink painting", "style"),
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkTask(EvaluationTask):
    """A concept with what it is learned from, with masks if asked for and there are some, and what kind it is.

    ``drawn`` makes a picture ``[3, H, W]`` in [-1, 1] of a prompt as it should be, from a seed, where that is known.
    """

    data: Callable[[bool], Dataset]
    kind: str
    drawn: Callable[[str, int], Tensor] | None = None


@dataclass(frozen=True)
class Suite:
    """Lessons in order, the model and the tower, and how the concepts are learned and painted."""

    name: str
    backbone: Backbone | TransformerBackbone
    tower: Tower
    lessons: Sequence[BenchmarkTask]
    recipe: TrainingConfig
    infusion: TrainingConfig
    sampling: SampleSettings

    @cached_property
    def mean_lengths(self) -> dict[str, float]:
        """The length of the mean of each concept's references. IA divided by it is identity matching, so a folder of scores that were made
        before there was that figure has it too.
        """
        return {lesson.name: mean_length(embed_all(self.tower, lesson.references)) for lesson in self.lessons}

    def config_of(self, lesson: BenchmarkTask, config: TrainingConfig, seed: int) -> TrainingConfig:
        return config.update(seed=seed, kind=lesson.kind, templates=method_of(config).templates(lesson.kind))


def recipe_on(family: Family, otherwise: TrainingConfig) -> TrainingConfig:
    """Returns what learns concepts on a family: ``otherwise`` where layers each read a text, else LoRA as suits it."""
    return otherwise if family.layerwise else configure_for(family, "lora")


def doodle_suite(backbone: Backbone | TransformerBackbone, tower: Tower, tasks: int = 10, steps: int = 12) -> Suite:
    """Doodle's ten concepts, each from six renderings; references are renderings that no training sees."""
    lessons = [doodle_task(concept) for concept in list(CONCEPTS.values())[:tasks]]
    sampling = SampleSettings(128, steps, usual_guidance(backbone.family))
    return Suite("doodle", backbone, tower, lessons, recipe_on(backbone.family, RECIPE), INFUSED, sampling)


def doodle_task(concept: DoodleConcept) -> BenchmarkTask:
    subject = article(concept.class_word).replace(concept.class_word, "<TOK>")
    prompts = [prompt.replace("{}", subject) for prompt in (THINGS if concept.look else STYLES)]

    def drawn(prompt: str, seed: int) -> Tensor:
        return from_pixels(render(scene_of(prompt, concept, seed))[0][None])[0]

    def data(masked: bool) -> Dataset:
        return training_pictures(concept, masked)

    return BenchmarkTask(concept.name, concept.class_word, prompts, doodle_references(concept.name), data, concept.kind, drawn)


def folder_suite(
    folder: Path, backbone: Backbone | TransformerBackbone, tower: Tower, size: int, tasks: int = 10, steps: int = 50
) -> Suite:
    """CIFC as its authors lay it out: ``images/<task>``, ``caption/<task>``, ``evaluation_prompts/test_<kind>.txt``.

    Raises ``FileNotFoundError`` naming what is not there.
    """
    if missing := [place for place in ("images", "evaluation_prompts") if not (folder / place).is_dir()]:
        raise FileNotFoundError(f"{folder}: no {missing[0]} in it: expected the CIFC data set, with images, caption and evaluation_prompts")
    lessons = [
        BenchmarkTask(
            name,
            class_word,
            read_prompts(folder / "evaluation_prompts" / f"test_{kind}.txt"),
            references_in(folder / "images" / name)[0],
            lambda masked, name=name: captioned(folder, name, size),  # type: ignore[misc]
            "style" if kind == "style" else "thing",
        )
        for name, class_word, kind in CIFC[:tasks]
    ]
    sampling = SampleSettings(size, steps, usual_guidance(backbone.family), seed=2024)
    return Suite("cifc", backbone, tower, lessons, recipe_on(backbone.family, configure("cidm")), configure("infusion"), sampling)


def captioned(folder: Path, name: str, size: int) -> Dataset:
    """The pictures of a task with the captions that lie in a folder of their own."""
    data = from_folder(folder / "images" / name, size)
    files = [folder / "caption" / name / re.sub(r"\.\w+$", ".txt", picture) for picture in data.names]
    captions = [read_text(file, LARGEST_CAPTION).strip() if file.exists() else "" for file in files]
    return replace(data, captions=captions, warnings=[w for w in data.warnings if "no caption file" not in w])
