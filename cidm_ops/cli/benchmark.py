"""`cidm benchmark`: CIDM, its baselines and its ablations, learned and scored by the paper's protocol."""

import argparse
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..bank.files import write_atomically
from .arguments import add_model, whole
from .model import load_base

if TYPE_CHECKING:
    from ..benchmarks.quality.methods import Method, Training
    from ..benchmarks.quality.suite import Suite
    from ..engines.parts import PartsJudge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--suite", default="doodle", help="'doodle', or the folder of the CIFC data set (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark"), help="keeps all that is done (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", help="which, in which order (default: all)")
    parser.add_argument("--ablations", action="store_true", help="the ablations too")
    parser.add_argument("--seeds", type=whole(0), nargs="+", default=[0, 1, 2], help="of learning and painting (default: 0 1 2)")
    parser.add_argument("--samples", type=whole(1), default=1, help="pictures of each of the 20 prompts (default: %(default)s)")
    parser.add_argument("--steps", type=whole(1), help="sampling steps (default: 12 on Doodle, else 50)")
    parser.add_argument("--tasks", type=whole(1), default=10, help="how many, from the first (default: %(default)s)")
    parser.add_argument("--curves", action=argparse.BooleanOptionalAction, default=True, help="over the strength, with the first seed")
    parser.add_argument("--batch", type=whole(1), help="pictures painted together (default: 20 on Doodle, else 4)")
    parser.add_argument("--bf16", action="store_true", help="paint in bf16, where the machine is made for it")
    parser.add_argument("--vision", default="doodle", help="image tower, as of `cidm evaluate` (default: %(default)s)")
    parser.add_argument("--judge", type=Path, help="a judge of parts, as of `cidm evaluate`: identity by parts of Doodle's own concepts")
    parser.add_argument("--weight", action="append", default=[], metavar="TRAINING=NUMBER", help="of what a baseline adds to the loss")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the recipe, for all methods but Infusion"
    )
    parser.add_argument("--infusion", action="append", default=[], metavar="NAME=VALUE", help="a setting of Infusion's recipe")
    parser.add_argument("--note", default="", help="a line on what the figures mean, for the table and the report")
    parser.add_argument("--json", type=Path, help="write the figures here")


def run(options: argparse.Namespace) -> None:
    """Learn and score what is not there yet, print the table, write figures and report."""
    from ..benchmarks.quality.figures import figures, overlap, row_of
    from ..benchmarks.quality.page import page, table
    from ..benchmarks.quality.protocol import Bench, run_all
    from ..benchmarks.speed.timing import machine
    from ..painting.config import MODES

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    methods, trainings = _methods(options), _trainings(options)
    suite = _suite(options)
    batch = options.batch or (20 if options.suite == "doodle" else 4)
    judge = _judge(options)
    bench = Bench(options.folder, suite, options.samples, batch, options.bf16, trainings, judge)
    curves = options.seeds[:1] if options.curves else ()
    run_all(bench, methods, options.seeds, curves)
    rows = {name: row_of(bench, name, method, options.seeds, curves) for name, method in methods.items()}
    found = {"bench": "benchmark", "suite": suite.name, **figures(rows), "seeds": options.seeds, "samples": options.samples} | machine()
    learned = {m.training for m in methods.values() if m.merge in ("sum", *MODES)} if options.tasks > 1 else set()
    found |= {f"{t}_overlap": round(overlap(bench, t, options.seeds), 4) for t in sorted(learned)}
    print(table(rows, suite, options.note))
    page(options.folder, rows, suite, found, options.note)
    print(options.folder / "report.html")
    if options.json:
        write_atomically(json.dumps(found, indent=2).encode(), options.json)


def _methods(options: argparse.Namespace) -> "dict[str, Method]":
    """The methods to compare, by name. Raises ``ValueError`` for one that is not known."""
    from ..benchmarks.quality.methods import ABLATIONS, METHODS

    everything = METHODS | ABLATIONS
    names = options.methods or [n for n in (everything if options.ablations else METHODS) if n != "drawn" or options.suite == "doodle"]
    if unknown := [name for name in names if name not in everything]:
        raise ValueError(f"method {unknown[0]!r}: expected some of {', '.join(everything)}")
    return {name: everything[name] for name in names}


def _trainings(options: argparse.Namespace) -> "dict[str, Training]":
    """How methods are trained, by name, with the weights that were given. Raises ``ValueError`` for a weight of nothing, or none."""
    from ..benchmarks.quality.methods import TRAININGS

    trainings = dict(TRAININGS)
    for setting in options.weight:
        name, _, value = setting.partition("=")
        if name not in trainings or not re.fullmatch(r"[0-9.]+(e[-+]?[0-9]+)?", value):
            raise ValueError(f"--weight {setting}: expected TRAINING=NUMBER with one of {', '.join(trainings)}")
        trainings[name] = replace(trainings[name], change={**trainings[name].change, "consolidation": float(value)})
    return trainings


def _judge(options: argparse.Namespace) -> "PartsJudge | None":
    """The judge of parts that was given. Raises ``ValueError`` with a suite whose things it does not know."""
    from ..engines.parts import load_judge

    if options.judge is None:
        return None
    if options.suite != "doodle":
        raise ValueError(f"--judge reads the parts of Doodle's own things, and --suite is {options.suite}: leave one of them out")
    return load_judge(options.judge)


def _suite(options: argparse.Namespace) -> "Suite":
    """Load the base and the tower, and what they are tried on, with the settings that were given."""
    from ..benchmarks.quality.suite import doodle_suite, folder_suite
    from ..engines.towers import load_tower

    backbone, tower = load_base(options, on_cuda="float16"), load_tower(options.vision)
    if options.suite == "doodle":
        suite = doodle_suite(backbone, tower, options.tasks)
    else:
        suite = folder_suite(Path(options.suite), backbone, tower, options.size or backbone.size, options.tasks)
    recipe, infusion = suite.recipe.parse(options.set), suite.infusion.parse(options.infusion)
    return replace(suite, recipe=recipe, infusion=infusion, sampling=replace(suite.sampling, steps=options.steps or suite.sampling.steps))
