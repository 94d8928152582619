"""The pictures of docs/training_trouble.md: ``python tests/headless/troubles.py FOLDER`` trains what goes wrong there, on Doodle.

Each fault is one change to the recipe with which the shipped concepts were learned; they stand beside it, painted from the same noise.
What was trained before is not trained again.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from cidm_ops.backbone import Backbone  # noqa: E402
from cidm_ops.bank.bank import Bank  # noqa: E402
from cidm_ops.bank.formats import write_picture  # noqa: E402
from cidm_ops.doodle.concepts import CONCEPTS  # noqa: E402
from cidm_ops.doodle.world import Scene, arrange, render  # noqa: E402
from cidm_ops.engines.diffusers import load  # noqa: E402
from cidm_ops.evaluation.doodle import GUIDANCE, PLACES, RECIPE, SEED, training_pictures  # noqa: E402
from cidm_ops.measure.report import from_pixels  # noqa: E402
from cidm_ops.measure.sheets import Strip, sheet  # noqa: E402
from cidm_ops.painting.paint import SamplingConfig, paint, unit_noise  # noqa: E402
from cidm_ops.training.config import TrainingConfig  # noqa: E402
from cidm_ops.training.crops import resize  # noqa: E402
from cidm_ops.training.dataset import Dataset  # noqa: E402
from cidm_ops.training.method import Task  # noqa: E402
from cidm_ops.training.task import learn_into  # noqa: E402

TEN = HERE.parents[1] / "cidm_ops" / "doodle" / "ten"
Fault = Callable[[], tuple[Dataset, TrainingConfig]]


def in_one_place() -> tuple[Dataset, TrainingConfig]:
    """Six pictures in the snow, and no caption says so."""
    rng, look = np.random.default_rng(1), CONCEPTS["dog"].look
    assert look is not None
    shown = [render(Scene(arrange([look], ["dog"], rng), "snow", seed=i))[0] for i in range(6)]
    return Dataset(list(from_pixels(np.stack(shown)) / 2 + 0.5), ["dog"] * 6), RECIPE


def with_rates_of_sd15() -> tuple[Dataset, TrainingConfig]:
    return training_pictures(CONCEPTS["dog"]), RECIPE.update(lr=1e-4, lr_tokens=1e-3)


def with_the_hat_in_captions() -> tuple[Dataset, TrainingConfig]:
    data = training_pictures(CONCEPTS["duck"])
    return replace(data, captions=[caption.replace("duck", "duck with a green hat", 1) for caption in data.captions]), RECIPE


def with_masks_inside_out() -> tuple[Dataset, TrainingConfig]:
    data = training_pictures(CONCEPTS["dog"], masked=True)
    return replace(data, masks=[1 - mask for mask in data.masks if mask is not None]), RECIPE


def with_masks_that_cut_the_head_off() -> tuple[Dataset, TrainingConfig]:
    def cut(mask: torch.Tensor) -> torch.Tensor:
        rows = mask[0].amax(1).nonzero()[:, 0]
        neck = int(rows[0] + 0.55 * (rows[-1] - rows[0]))
        return torch.cat((torch.zeros_like(mask[:, :neck]), mask[:, neck:]), 1)

    data = training_pictures(CONCEPTS["dog"], masked=True)
    return replace(data, masks=[cut(mask) for mask in data.masks if mask is not None]), RECIPE


def from_tiny_pictures() -> tuple[Dataset, TrainingConfig]:
    data = training_pictures(CONCEPTS["dog"])
    return replace(data, pictures=[resize(resize(p, 32, 32), 128, 128) for p in data.pictures]), RECIPE


# By the name of the picture: its title, whose concept, and what is shown: words and how they were learned, or nothing for the shipped one.
TROUBLES: dict[str, tuple[str, str, dict[str, tuple[Fault | None, float]]]] = {
    "too_much": (
        "Six pictures in the snow, the snow in no caption",
        "dog",
        {"learned so": (in_one_place, 1.0), "the same, at 0.7": (in_one_place, 0.7), "six places, named in captions": (None, 1.0)},
    ),
    "too_little": (
        "The rates of Stable Diffusion 1.5 on Doodle",
        "dog",
        {"learned so": (with_rates_of_sd15, 1.0), "rates at 0, which is what suits the base": (None, 1.0)},
    ),
    "captions": (
        "“duck with a green hat” in every caption",
        "duck",
        {"learned so: the hat belongs to the other words": (with_the_hat_in_captions, 1.0), "captions that say “duck”": (None, 1.0)},
    ),
    "masks": (
        "Masks that slipped",
        "dog",
        {
            "black on the dog, white around it": (with_masks_inside_out, 1.0),
            "without the head": (with_masks_that_cut_the_head_off, 1.0),
            "no mask": (None, 1.0),
        },
    ),
    "sizes": ("Pictures of 32 x 32 pixels", "dog", {"learned so": (from_tiny_pictures, 1.0), "of 128 x 128": (None, 1.0)}),
}


def learn(backbone: Backbone, folder: Path, name: str, fault: Fault) -> Bank:
    data, config = fault()
    bank = Bank(folder / fault.__name__)
    return learn_into(bank, backbone, data, Task(name=name, class_word=CONCEPTS[name].class_word, config=config), tell=print).bank


def dim(picture: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """A picture in [-1, 1] of which only what the mask leaves is bright."""
    return picture if mask is None else (picture + 1) * (0.25 + 0.75 * mask) - 1


def main(folder: str) -> None:
    out, backbone = Path(folder), load("doodle")
    noise = unit_noise(backbone.family, SEED, 1, 128, 128)
    for picture, (title, name, ways) in TROUBLES.items():
        strips = []
        for said, (fault, strength) in ways.items():
            shown = fault()[0] if fault else training_pictures(CONCEPTS[name])
            bank = learn(backbone, out / "banks", name, fault) if fault else Bank(TEN)
            prompts = [f"a <{name}:{strength:g}> {place}" for place in PLACES]
            painted = [paint(backbone, bank, prompt, noise, SamplingConfig(guidance=GUIDANCE))[0][0] for prompt in prompts]
            learned = [dim(p * 2 - 1, mask) for p, mask in zip(shown.pictures, shown.masks, strict=True)]
            labels = [("learned from", ""), ("", ""), ("", ""), *(("painted", place) for place in PLACES)]
            strips.append(Strip(said, [*learned[:3], *painted], labels))
        note = f"Doodle, one seed; prompts “a <{name}> {PLACES[0]}” and so on."
        write_picture(sheet(strips, title, note), out / f"trouble_{picture}.png")
        print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
