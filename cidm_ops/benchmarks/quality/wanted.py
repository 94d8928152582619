"""What a benchmark was asked for, as plain values that travel to other machines, and the benchmark that comes of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...engines.diffusers import DiffusersBackbone
from ...engines.parts import SHIPPED, load_judge
from ...engines.towers import load_tower
from ...engines.transformer import DiffusersTransformer
from ...models.family import Family
from .methods import ABLATIONS, METHODS, TRAININGS, Method, Training
from .protocol import Bench
from .suite import Suite, doodle_suite, folder_suite


@dataclass(frozen=True)
class Wanted:
    """``suite`` is "doodle" or the folder of the CIFC data set; ``weights``, ``settings`` and ``infusion`` have entries ``name=value``. The
    rest is what ``Bench`` and its suite take, None for what suits the suite.
    """

    folder: Path
    suite: str = "doodle"
    samples: int = 1
    steps: int | None = None
    tasks: int = 10
    size: int | None = None
    batch: int | None = None
    bf16: bool = False
    vision: str = "doodle"
    judge: str | None = None
    weights: Sequence[str] = ()
    settings: Sequence[str] = ()
    infusion: Sequence[str] = ()

    def bench(self, backbone: DiffusersBackbone | DiffusersTransformer) -> Bench:
        """Returns the benchmark on a base. Raises ``ValueError`` for what cannot be."""
        batch = self.batch or (20 if self.suite == "doodle" else 4)
        judge = load_judge(self.judge or SHIPPED) if self.suite == "doodle" else None
        return Bench(self.folder, self.suite_on(backbone), self.samples, batch, self.bf16, self.trainings(), judge)

    def suite_on(self, backbone: DiffusersBackbone | DiffusersTransformer) -> Suite:
        """Returns what methods are tried on, with the settings that were given."""
        tower = load_tower(self.vision)
        if self.suite == "doodle":
            suite = doodle_suite(backbone, tower, self.tasks)
        else:
            suite = folder_suite(Path(self.suite), backbone, tower, self.size or backbone.size, self.tasks)
        recipe, infusion = suite.recipe.parse(self.settings), suite.infusion.parse(self.infusion)
        return replace(suite, recipe=recipe, infusion=infusion, sampling=replace(suite.sampling, steps=self.steps or suite.sampling.steps))

    def check(self) -> None:
        """Raises ``ValueError`` for what cannot be on any base."""
        self.trainings()
        if self.judge is not None and self.suite != "doodle":
            raise ValueError(f"--judge reads the parts of Doodle's own things, and --suite is {self.suite}: leave one of them out")

    def trainings(self) -> dict[str, Training]:
        """Returns how methods are trained, by name, with the weights that were given. Raises ``ValueError`` for a weight of nothing, or
        none.
        """
        trainings = dict(TRAININGS)
        for setting in self.weights:
            name, _, value = setting.partition("=")
            if name not in trainings or not re.fullmatch(r"[0-9.]+(e[-+]?[0-9]+)?", value):
                raise ValueError(f"--weight {setting}: expected TRAINING=NUMBER with one of {', '.join(trainings)}")
            trainings[name] = replace(trainings[name], change={**trainings[name].change, "consolidation": float(value)})
        return trainings


def methods_named(names: Sequence[str] | None, ablations: bool, suite: str) -> Mapping[str, Method]:
    """Returns the methods to compare, by name. Raises ``ValueError`` for one that is not known."""
    everything = METHODS | ABLATIONS
    wanted = names or [n for n in (everything if ablations else METHODS) if n != "drawn" or suite == "doodle"]
    if unknown := [name for name in wanted if name not in everything]:
        raise ValueError(f"method {unknown[0]!r}: expected some of {', '.join(everything)}")
    return {name: everything[name] for name in wanted}


def methods_on(family: Family, methods: Mapping[str, Method], chosen: bool) -> tuple[Mapping[str, Method], list[str]]:
    """Returns those of the methods that can be on a family, and the names of the others. Raises ``ValueError`` for one of those that was
    ``chosen``.
    """
    others = [] if family.layerwise else [name for name, method in methods.items() if not method.is_joint]
    if others and chosen:
        able = ", ".join(name for name, method in (METHODS | ABLATIONS).items() if method.is_joint)
        raise ValueError(f"method {others[0]!r} is none for {family.title}, all layers of which read one text: expected some of {able}")
    return {name: method for name, method in methods.items() if name not in others}, others
