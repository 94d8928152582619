"""What a concept learned from pictures with one background does to everything else: Infusion, with and without our anchor, and weight
tuning, on Doodle.

The dog of ``dog2`` always stands in the snow on the left, and the captions only say "dog". Banks and scores stay in a folder, and a run
that was stopped goes on from there.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...adapters import attach
from ...bank.bank import Bank
from ...bank.files import write_atomically
from ...bank.formats import write_array, write_picture
from ...doodle.concepts import CONCEPTS, examples
from ...doodle.figures import COLOURS, individual, plain
from ...doodle.style import PLACES
from ...doodle.world import IN_PLACE
from ...evaluation.doodle import GUIDANCE, RECIPE, DoodleBench, pictured
from ...measure.interval import mean_interval
from ...measure.report import contact_sheet, from_pixels
from ...measure.scores import embed, image_alignment
from ...measure.wasserstein import wasserstein
from ...painting.compose import ParsedPrompt, compose, encode
from ...painting.paint import SamplingConfig, paint, predictor, unit_noise
from ...painting.scene import Scene
from ...training.config import TrainingConfig
from ...training.dataset import Dataset
from ...training.method import Task
from ...training.methods import configure
from ...training.task import learn_into
from .standing import SIDES, coat_distances, render_standing, sides_of
from .timing import machine

log = logging.getLogger("cidm.bench")

NAME, CLASS, PLACE = "dog2", "dog", "snow"
# On Doodle the class word gets 1 to 17 % of the attention inside the dog and the end of the text nearly all of the rest, so residuals have
# to be several times as long as values are: 0.01, the authors' rate, hardly shows after 400 steps.
INFUSED = configure("infusion", accumulate=1, steps=150, lr=0.3)
RECIPES: dict[str, TrainingConfig] = {
    "weights": RECIPE,
    "weights_masked": RECIPE,
    "infusion": INFUSED,
    "infusion_snr": INFUSED.update(min_snr=1.0),
    "infusion_anchor": INFUSED.update(min_snr=1.0, anchor=0.2),
}
SUBJECTS = {"base": CLASS, **dict.fromkeys(RECIPES, f"<{NAME}>")}
ASKED = [(place, side) for place in PLACES for side in SIDES]
NEUTRAL = 16  # pictures of a prompt that names no place
OTHERS = (
    "a red cat on the beach",
    "a boat at night",
    "two ducks in a meadow",
    "a green house in the forest",
    "a cat",
    "a car on the street",
)
WITH_IT = ("a {} and a red cat on the beach", "a {} next to a boat", "a {} and a green duck in a meadow")
STEPS = 15  # of the sampler
LEVELS, DIVERGING = 10, 4  # noise levels, and pictures of each prompt, that the divergence is over


def run(folder: Path = Path("runs/infusion"), seeds: int = 13) -> dict[str, Any]:
    """Measure each side, the base included: ``place`` and ``side`` are the share of pictures that obey what the prompt says of them, with
    the bootstrap interval's ``_low`` and ``_high``; ``ia`` with held-out renderings of the concept; ``coat``, the distance of the coat's
    colour from the concept's (RGB, 0..255). ``w2_mean`` and ``w2_covariance`` are the terms of W2^2 between these pictures' embeddings and
    those of the base's pictures of the class word, ``w2_spread`` the ratio of the spreads and ``w2_floor`` the noise floor.
    ``neutral_snow`` and ``neutral_entropy`` (nats) are of the places in pictures of a prompt that names none. ``lfd_others``: mean of
    ``|eps_0 - eps_1|^2`` per element over prompts without the class word, and ``lfd_class`` with the plain class word, the concept merged
    or not as each method has it; ``lfd_with``: of prompts with the concept and something else. ``judge_place`` and ``judge_side`` are how
    often the judges are right on renderings, ``judge_coat`` is the distance of renderings of the concept itself.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    bench = Bench(folder, seeds)
    figures = {f"judge_{key}": share for key, share in bench.once("judges", bench.judged).items()}
    for side in SUBJECTS:
        figures |= {f"{side}_{key}": value for key, value in bench.once(side, partial(bench.scored, side)).items()}
    bench.sheet()
    return figures | {"seeds": seeds, "steps_weights": RECIPE.steps, "steps_infusion": INFUSED.steps} | machine()


class Bench:
    """Folder, model and judges of one run of the benchmark."""

    def __init__(self, folder: Path, seeds: int):
        self.folder, self.seeds, self.doodle = folder, seeds, DoodleBench()
        self.plain: dict[str, Tensor] = {}  # latents of the base's own pictures, by prompt
        folder.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, made: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Figures that are kept in the folder."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            figures = {key: round(value, 6) for key, value in made().items()}
            write_atomically(json.dumps(figures, indent=1).encode(), file)
            log.info("%s %s", name, figures)
        return json.loads(file.read_text())

    def bank(self, side: str) -> Bank:
        """Return a bank with the concept as the side learns it."""
        bank = Bank(self.folder / side)
        if side == "base":
            return bank
        data = training_pictures(side != "weights")
        return learn_into(bank, self.doodle.backbone, data, Task(name=NAME, class_word=CLASS, config=RECIPES[side])).bank

    def scored(self, side: str) -> dict[str, float]:
        bank, subject = self.bank(side), SUBJECTS[side]
        pictures = [self.painted(bank, f"a {subject} {s} {IN_PLACE[p][0]}") for p, s in ASKED]
        write_array(torch.stack([row[0] for row in pictures]).numpy(), self.folder / f"{side}.npy")
        whole = torch.cat(pictures)
        seen = embed(self.doodle.tower, whole)
        write_array(seen.numpy(), self.folder / f"{side}_seen.npy")
        apart = wasserstein(torch.from_numpy(np.load(self.folder / "base_seen.npy")), seen)
        shown = self.painted(bank, f"a photo of a {subject}", NEUTRAL)
        neutral = [n / NEUTRAL for n in Counter(self.places(shown)).values()]
        classy = [p.format(CLASS) for p in WITH_IT]
        return {
            **self.obeyed("place", self.places(whole), [p for p, _ in ASKED]),
            **self.obeyed("side", sides_of(whole), [s for _, s in ASKED]),
            "ia": image_alignment(seen, self.doodle.references(NAME)),
            "coat": float(coat_distances(whole, CONCEPTS[NAME].look).mean()),
            "w2_mean": apart.mean,
            "w2_covariance": apart.covariance,
            "w2_spread": apart.ratio,
            "w2_floor": apart.floor,
            "neutral_snow": share(self.places(shown), [PLACE] * NEUTRAL),
            "neutral_entropy": -sum(p * math.log(p) for p in neutral),
            "lfd_others": self.divergence(bank, OTHERS, OTHERS),
            "lfd_class": self.divergence(bank, classy, classy),
            "lfd_with": self.divergence(bank, classy, [p.format(subject) for p in WITH_IT]),
        }

    def obeyed(self, what: str, found: list[str], asked: list[str]) -> dict[str, float]:
        """The share of pictures that show what was asked, ``seeds`` of them for each, and its interval."""
        right = torch.tensor([a == b for a, b in zip(found, np.repeat(asked, self.seeds), strict=True)])
        interval = mean_interval(right, f"{len(found)} pictures")
        return {what: interval.value, f"{what}_low": interval.low, f"{what}_high": interval.high}

    def painted(self, bank: Bank, prompt: str, count: int = 0) -> Tensor:
        backbone = self.doodle.backbone
        noise = unit_noise(backbone.family, 1, count or self.seeds, 128, 128)
        return paint(backbone, bank, prompt, noise, SamplingConfig(STEPS, GUIDANCE))[0]

    @torch.no_grad()
    def divergence(self, bank: Bank, plainly: Any, prompts: Any) -> float:
        """Latent Fisher divergence, our estimator: mean ``|eps_0 - eps_1|^2`` over pictures that the base paints of ``plainly`` and noise
        levels; the concept acts on ``prompts``. Tuned weights act whatever the prompt says, as any LoRA of a host does.
        """
        backbone, found = self.doodle.backbone, []
        weights = {n: f for name in bank.names for n, f in bank.get(name).factors.items()}
        levels = torch.linspace(0, len(backbone.schedule.sigma) - 1, LEVELS + 2)[1:-1].long()
        for number, (simple, prompt) in enumerate(zip(plainly, prompts, strict=True)):
            if simple not in self.plain:
                self.plain[simple] = backbone.encode_image(self.painted(Bank(self.folder / "base"), simple, DIVERGING))
            clean = self.plain[simple]
            mixture = compose(backbone, bank, prompt)
            texts = [encode(backbone, said).expand(DIVERGING) for said in (ParsedPrompt(simple), mixture)]
            predict = predictor(backbone, Scene())
            for t in levels:
                noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1000 * number + int(t)))
                times = t.expand(len(clean))
                x = backbone.schedule.add_noise(clean, noise, times)
                eps = predict(x, times, texts[0].rows, None, 1)
                with attach(backbone.layers, weights):
                    found.append((predict(x, times, texts[1].rows, None, 1) - eps).square().mean())
        return float(torch.stack(found).mean())

    @cached_property
    def captions(self) -> Tensor:
        """Embeddings of what places are called, ``[6, E]``."""
        said = [self.doodle.reader.captions([f"a dog {s} {words}" for words in IN_PLACE[p] for s in SIDES]).mean(0) for p in PLACES]
        return F.normalize(torch.stack(said), dim=-1)

    def places(self, pictures: Tensor) -> list[str]:
        """The place whose captions are nearest to pictures ``[N, 3, H, W]``."""
        return [PLACES[i] for i in (embed(self.doodle.reader, pictures) @ self.captions.T).argmax(1).tolist()]

    def judged(self) -> dict[str, float]:
        """Right answers on renderings of dogs in all looks, places and sides, and the coat of those of the concept."""
        rng = np.random.default_rng(5)
        looks = [CONCEPTS[NAME].look, *(individual(CLASS, rng) for _ in range(4)), *(plain(CLASS, c) for c in COLOURS.values())]
        asked = [(p, s) for p, s in ASKED for _ in range(12)]
        shown = from_pixels(np.stack([render_standing(looks[i % len(looks)], p, s, rng)[0] for i, (p, s) in enumerate(asked)]))
        return {
            "place": share(self.places(shown), [p for p, _ in asked]),
            "side": share(sides_of(shown), [s for _, s in asked]),
            "coat": float(coat_distances(shown[:: len(looks)], looks[0]).mean()),
        }

    def sheet(self) -> None:
        """The first picture of every prompt, a row per side."""
        rows = [("the training pictures", torch.stack(list(training_pictures(False).pictures)) * 2 - 1)]
        rows += [(f"{NAME}, held out", pictured(examples(CONCEPTS[NAME], 6, seed=1)))]
        rows += [(side.replace("_", ", "), torch.from_numpy(np.load(self.folder / f"{side}.npy"))) for side in SUBJECTS]
        write_picture(contact_sheet(rows, label=150), self.folder / "sheet.png")


def training_pictures(masked: bool) -> Dataset:
    """Six pictures with one background, captioned with the class word alone."""
    shown = [render_standing(CONCEPTS[NAME].look, PLACE, "on the left", np.random.default_rng(i)) for i in range(6)]
    masks = [torch.from_numpy(mask)[None].float() / 255 for _, mask in shown] if masked else []
    return Dataset(list(from_pixels(np.stack([picture for picture, _ in shown])) / 2 + 0.5), [""] * 6, masks)


def share(found: list[str], wanted: list[str]) -> float:
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)
