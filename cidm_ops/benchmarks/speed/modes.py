"""What each consolidation mode does to ten Doodle concepts learned one after the other: identity, obedience, forgetting, overlap.

The part of `cidm benchmark` that is about consolidation, in its protocol and its folder: each mode with exact routing and with that of the
released code, where concepts do mix. Hours on two cores.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...engines.diffusers import load
from ...engines.towers import load_tower
from ...method.consolidation import MODES
from ...painting.config import BY_KIND
from ..quality.figures import figures, overlap, row_of
from ..quality.methods import Method
from ..quality.protocol import Bench, run_all
from ..quality.suite import doodle_suite
from .timing import machine

TRAININGS = {mode: mode for mode in MODES} | {"off": "apart"}


def run(folder: Path = Path("runs/modes"), seeds: int = 3, modes: Sequence[str] = MODES) -> dict[str, Any]:
    """Measure each mode: ``ia``, ``ta`` and ``forgetting`` with their intervals, ``_released`` with that routing, and ``overlap``, the mean
    cosine of the angles between what two concepts write, over pairs and layers.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    bench = Bench(folder, doodle_suite(load("doodle"), load_tower("doodle")))
    methods = {mode: Method(mode, TRAININGS[mode], "exact", (), BY_KIND) for mode in modes}
    methods |= {f"{mode}_released": Method(mode, TRAININGS[mode], "released", ()) for mode in modes}
    run_all(bench, methods, range(seeds))
    rows = {name: row_of(bench, name, method, range(seeds)) for name, method in methods.items()}
    shares = {f"{mode}_overlap": round(overlap(bench, TRAININGS[mode], range(seeds)), 4) for mode in modes}
    return (
        figures(rows, ours="")
        | shares
        | {"seeds": seeds, "concepts": len(bench.suite.lessons), "steps": bench.suite.recipe.steps}
        | machine()
    )
