"""What is true of every method, on every model: a class of statements about a ``Case``, which a test module makes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.engines.diffusers import load_any
from cidm_ops.lowrank import LowRank
from cidm_ops.method.regions import RegionMask
from cidm_ops.painting.compose import AggregationConfig
from cidm_ops.painting.composition import compose_regions
from cidm_ops.painting.config import EVERYWHERE
from cidm_ops.painting.paint import SamplingConfig, paint, paint_latents, unit_noise
from cidm_ops.training.checkpoint import checkpoint_file
from cidm_ops.training.config import TrainingConfig
from cidm_ops.training.dataset import Dataset
from cidm_ops.training.method import Task
from cidm_ops.training.methods import METHODS, configure
from cidm_ops.training.spaces import Contrast, Space
from cidm_ops.training.task import Learned, learn_into
from cidm_ops.training.trainer import Trainer

MODELS = [
    ("doodle", torch.float32),
    ("tiny_sd1", torch.float32),
    ("tiny_sd1", torch.bfloat16),
    ("tiny_sdxl", torch.float32),
    ("tiny_sdxl", torch.bfloat16),
]
TRANSFORMERS = [(f"tiny_{name}", torch.float32) for name in ("flux1", "chroma", "lumina2", "zimage", "qwenimage", "sd3", "flux2")] + [
    ("tiny_flux1", torch.bfloat16)
]
IDS = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in MODELS]
STEPS, STOP = 4, 2
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest value of latents


class Stopped(Exception):
    pass


@dataclass
class Case:
    """A method and a model, and what they made of a task that ran to its end."""

    method: str
    backbone: Any
    folder: Path
    learned: Learned
    painted: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def make(cls, method: str, model: tuple[str, torch.dtype], request: pytest.FixtureRequest) -> "Case":
        name, dtype = model
        backbone = load_any(name if name == "doodle" else request.getfixturevalue(name), dtype=dtype)
        folder = request.getfixturevalue("tmp_path_factory").mktemp(f"{method}-{name}")
        return cls(method, backbone, folder, learn_into(Bank(folder / "whole"), backbone, pictures(), task(method)))

    def paint(self, bank: Bank, prompt: str) -> torch.Tensor:
        return paint(self.backbone, bank, prompt, unit_noise(self.backbone.family, 1, 1, 64, 64), SamplingConfig(2, 3.0))[0]

    def latents(self, bank: Bank, prompt: str, *regions: tuple[str, RegionMask], **how: Any) -> torch.Tensor:
        """What a picture is decoded from, which takes most of its time on small models."""
        config = SamplingConfig(2, 3.0, **how)
        composition = compose_regions(self.backbone, bank, prompt, regions, config.aggregation)
        wide = 128 if self.backbone.family.diffusers.multiple > 1 else 64  # tokens that fill up an image have absolute places
        return paint_latents(self.backbone, composition, unit_noise(self.backbone.family, 1, 1, 64, wide), config)

    def known(self, prompt: str) -> torch.Tensor:
        """The latents of a prompt of the bank, kept for the statements that compare with them."""
        if prompt not in self.painted:
            self.painted[prompt] = self.latents(self.learned.bank, prompt)
        return self.painted[prompt]

    def near(self, got: torch.Tensor, want: torch.Tensor) -> None:
        """Both are the same latents to the rounding of the model's precision."""
        off = float((got - want).abs().max() / want.abs().max())
        assert off <= ROUNDING[self.backbone.dtype], f"{off:.2g} apart"

    def bank_of(self, name: str, concept: Concept) -> Bank:
        return Bank(self.folder / name).add(concept)

    def predict(self) -> torch.Tensor:
        """What the model answers to a plain text."""
        learner = Trainer(self.backbone, pictures(), task(self.method)).learner
        x = unit_noise(self.backbone.family, 3, 1, 64, 64)
        with torch.no_grad():
            return learner.answer(x, torch.tensor([500]), ["a cat"])

    @property
    def joint(self) -> bool:
        """Whether all layers of the model read one text."""
        return not self.backbone.family.layerwise

    @property
    def modules(self) -> Mapping[str, Any]:
        """The layers by name."""
        return self.backbone.modules if self.joint else self.backbone.layers


def config_of(method: str) -> TrainingConfig:
    how = {"rank": 2} if method == "lora" else {}  # the small models have narrow layers
    return configure(method, steps=STEPS, batch=2, accumulate=1, lr=0.05, seed=3, **how)


def task(method: str, **how: Any) -> Task:
    if METHODS[method].contrasts:
        how.setdefault("contrast", Contrast((random_space(),)))
    return Task(name="rex", class_word="dog", config=how.pop("config", config_of(method)), **how)


def random_space() -> Space:
    """Returns a space of 8 dimensions that random maps lead to: from the colours of a picture, and from the ends of texts of any width."""

    def drawn(rows: torch.Tensor, seed: int) -> torch.Tensor:
        return rows.float() @ torch.randn(rows.shape[-1], 8, generator=torch.Generator().manual_seed(seed))

    def see(pictures: torch.Tensor) -> torch.Tensor:
        return drawn(torch.nn.functional.adaptive_avg_pool2d(pictures, 4).flatten(1), 1)

    return Space("", see, lambda ends: drawn(ends, 2), scale=20.0, side=32, about="random")


def pictures() -> Dataset:
    """Two random pictures of 64 pixels, the concept in the middle of each."""
    draw, middle = torch.Generator().manual_seed(0), torch.zeros(1, 64, 64)
    middle[:, 16:48, 16:48] = 1
    return Dataset([torch.rand(3, 64, 64, generator=draw) for _ in range(2)], ["a dog on grass", "a dog"], [middle, middle])


def without_weights(concept: Concept) -> Concept:
    """Returns a concept that has its words and changes nothing of the model."""
    return replace(concept, factors={}, text_factors={}, residuals={n: torch.zeros_like(r) for n, r in concept.residuals.items()})


@contextmanager
def merged(layers: Mapping[str, Any], factors: Mapping[str, LowRank]) -> Iterator[None]:
    """While open, factors are in the weights, as a host's LoRA loader puts them there."""
    before = {name: layers[name].weight.data for name in factors}
    for name, f in factors.items():
        layers[name].weight.data = (before[name].float() + f.delta()).to(before[name])
    try:
        yield
    finally:
        for name, weight in before.items():
            layers[name].weight.data = weight


def tensors(concept: Concept) -> dict[str, torch.Tensor]:
    """Returns all that a concept's file holds in numbers."""
    found = {f"{layer}.{side}": getattr(f, side) for layer, f in concept.all_factors.items() for side in ("up", "down")}
    return found | dict(concept.tokens) | dict(concept.residuals)


def assert_same(one: Concept, other: Concept) -> None:
    a, b = tensors(one), tensors(other)
    assert a and a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())
    assert (one.words, one.token_layers, one.training) == (other.words, other.token_layers, other.training)


class Statements:
    """A subclass gives the fixture ``case``."""

    def test_before_the_first_step_the_model_is_the_base(self, case):
        trainer, base = Trainer(case.backbone, pictures(), task(case.method)), case.predict()
        with trainer.attach():
            assert torch.equal(case.predict(), base)
        fresh = trainer.concept()
        new, plain = case.bank_of("fresh", fresh), case.bank_of("fresh-plain", without_weights(fresh))
        assert torch.equal(case.paint(new, "a <rex> on the beach"), case.paint(plain, "a <rex> on the beach"))

    def test_at_no_strength_the_picture_is_that_of_the_base(self, case):
        plain = case.bank_of("plain", without_weights(case.learned.concept))
        asleep = case.paint(case.learned.bank, "a <rex:0> on the beach")
        assert torch.equal(asleep, case.paint(plain, "a <rex:0> on the beach"))
        nothing = Bank(case.folder / "nothing")
        assert torch.equal(case.paint(case.learned.bank, "a cat"), case.paint(nothing, "a cat"))

    def test_the_picture_is_new_and_the_same_after_opening_the_bank_again(self, case):
        painted = case.paint(case.learned.bank, "a <rex> on the beach")
        assert painted.isfinite().all()
        assert (painted - case.paint(case.learned.bank, "a dog on the beach")).abs().max() > 1e-3
        assert torch.equal(painted, case.paint(Bank(case.learned.bank.folder), "a <rex> on the beach"))

    def test_one_concept_is_what_a_lora_loader_merges_into_the_weights(self, case):
        concept = case.learned.concept
        words = case.bank_of("words", replace(concept, factors={}))
        with merged(case.modules, concept.factors):
            want = case.latents(words, "a <rex> on the beach")
        case.near(case.known("a <rex> on the beach"), want)

    def test_concepts_beside_the_layers_paint_what_merged_ones_do(self, case):
        routed = AggregationConfig(routed=True, scope=EVERYWHERE)
        got = case.latents(case.learned.bank, "a <rex> on the beach", aggregation=routed)
        case.near(got, case.known("a <rex> on the beach"))

    def test_no_regions_are_the_prompt_alone_and_one_has_its_place(self, case):
        bank, concept, other = case.learned.bank, "a <rex> on the beach", "a cat"
        nothing, half = torch.zeros(8, 8), torch.cat([torch.ones(8, 4), torch.zeros(8, 4)], 1)
        case.near(case.latents(bank, concept, (other, RegionMask(nothing))), case.known(concept))
        own = torch.ones(8, 8) if case.joint else half  # in a sequence with the image, a text looks at its own place alone
        case.near(case.latents(bank, concept, (concept, RegionMask(own))), case.known(concept))
        painted = case.latents(bank, other, (concept, RegionMask(half)))
        assert min(float((painted - case.known(one)).abs().max()) for one in (concept, other)) > 1e-3

    def test_the_file_is_the_concept(self, case):
        assert_same(Bank(case.learned.bank.folder).get("rex"), case.learned.concept)
        record = case.learned.concept.training
        assert record["method"] == case.method and len(record["losses"]) == STEPS == record["steps"]
        assert all(torch.isfinite(t).all() for t in tensors(case.learned.concept).values())

    def test_a_run_that_is_cancelled_keeps_its_state_and_goes_on_bit_for_bit(self, case):
        bank, base = Bank(case.folder / "stopped"), case.predict()

        def cancel(trainer):
            if trainer.step == STOP:
                raise Stopped

        with pytest.raises(Stopped):
            learn_into(bank, case.backbone, pictures(), task(case.method), on_step=cancel)
        assert not Bank(bank.folder).names and checkpoint_file(bank, "rex").exists()
        assert torch.equal(case.predict(), base), "nothing stays on the model"
        steps, shown = [], []

        def watch(trainer):
            steps.append(trainer.step)
            shown.append(trainer.preview("a <rex>", steps=1))

        went_on = learn_into(bank, case.backbone, pictures(), task(case.method), on_step=watch)
        assert steps == list(range(STOP + 1, STEPS + 1)) and not checkpoint_file(bank, "rex").exists()
        assert shown[0].shape == (3, 64, 64) and went_on.losses == case.learned.losses
        assert_same(went_on.concept, case.learned.concept)

    def test_the_same_task_again_learns_nothing(self, case):
        steps = []
        again = learn_into(case.learned.bank, case.backbone, pictures(), task(case.method), on_step=lambda trainer: steps.append(1))
        assert not steps and again.losses == case.learned.concept.training["losses"]

    def test_a_concept_is_learned_further_or_the_method_says_that_it_cannot(self, case):
        bank = case.bank_of("further", case.learned.concept)
        more = task(case.method, config=config_of(case.method).update(seed=4, steps=1), existing="continue")
        try:
            further = learn_into(bank, case.backbone, pictures(), more).concept
        except ValueError as error:
            assert "'rex' cannot be learned further" in str(error)
        else:
            assert further.training["began"] == case.learned.concept.training["task"]
            assert tensors(further).keys() == tensors(case.learned.concept).keys()

    def test_a_wrong_setting_is_refused_by_name(self, case):
        for wrong, error in (({"lr": -1.0}, "lr -1.0"), ({"steps": 0}, "steps 0"), ({"speed": 1}, "'speed'")):
            with pytest.raises(ValueError, match=error):
                configure(case.method, **wrong)
        with pytest.raises(ValueError, match="'fast': expected one of"):
            configure("fast")
