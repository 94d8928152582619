"""What waves give up: ten Doodle concepts of which 1, 2, 5 or 10 are learned at the same time, not kept apart from each other.

In the protocol of `cidm benchmark` and its folder, with soft routing, where concepts do mix, and with exact routing, where they do not.
Hours on two cores.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engines.diffusers import load
from ...engines.towers import load_tower
from ...painting.config import BY_KIND
from ..quality.figures import figures, overlap, row_of
from ..quality.methods import TRAININGS, Method
from ..quality.protocol import Bench, run_all
from ..quality.suite import BenchmarkTask, doodle_suite
from .timing import machine

WIDTHS = (1, 2, 5, 10)
PREFIX = "width"


@dataclass(frozen=True)
class Waves(Bench):
    """A benchmark whose trainings are called by the width of their waves, ``width5``."""

    def beside(self, training: str, lesson: BenchmarkTask) -> Sequence[str]:
        width, names = int(training.removeprefix(PREFIX)), [one.name for one in self.suite.lessons]
        first = names.index(lesson.name) // width * width
        return [name for name in names[first : first + width] if name != lesson.name]


def run(folder: Path = Path("runs/waves"), seeds: int = 3) -> dict[str, Any]:
    """Measure each width: ``ia``, ``ta`` and ``forgetting`` with soft routing and, as ``_exact``, with exact routing; and ``overlap``, the
    mean cosine of the angles between what two concepts write, over pairs and layers.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    trainings = {f"{PREFIX}{width}": TRAININGS["corrected"] for width in WIDTHS}
    bench = Waves(folder, doodle_suite(load("doodle"), load_tower("doodle")), trainings=trainings)
    methods = {name: Method(name, name, "soft", (), BY_KIND) for name in trainings}
    methods |= {f"{name}_exact": Method(name, name, "exact", (), BY_KIND) for name in trainings}
    run_all(bench, methods, range(seeds), ())
    rows = {name: row_of(bench, name, method, range(seeds), ()) for name, method in methods.items()}
    shares = {f"{name}_overlap": round(overlap(bench, name, range(seeds)), 4) for name in trainings}
    return figures(rows, ours="") | shares | {"seeds": seeds, "concepts": len(bench.suite.lessons)} | machine()
