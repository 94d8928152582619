"""`cidm benchmark`: CIDM, its baselines and its ablations, learned and scored by the paper's protocol."""

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..bank.files import write_atomically
from .arguments import add_model, whole
from .model import load_base

if TYPE_CHECKING:
    from ..benchmarks.quality.methods import Method
    from ..benchmarks.quality.protocol import Bench
    from ..benchmarks.quality.wanted import Wanted


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
    parser.add_argument("--judge", help="a judge of parts, as of `cidm evaluate` (default: on the suite doodle the one that ships)")
    parser.add_argument("--weight", action="append", default=[], metavar="TRAINING=NUMBER", help="of what a baseline adds to the loss")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the recipe, for all methods but Infusion"
    )
    parser.add_argument("--infusion", action="append", default=[], metavar="NAME=VALUE", help="a setting of Infusion's recipe")
    parser.add_argument("--note", default="", help="a line on what the figures mean, for the table and the report")
    parser.add_argument("--json", type=Path, help="write the figures here")


def run(options: argparse.Namespace) -> None:
    """Learn and score what is not there yet, print the table, write figures and report."""
    from ..benchmarks.quality.wanted import methods_named, methods_on

    wanted, methods = wanted_of(options), methods_named(options.methods, options.ablations, options.suite)
    wanted.check()
    backbone = load_base(options, on_cuda="float16", transformers=True)
    methods, left_out = methods_on(backbone.family, methods, options.methods is not None)
    if left_out:
        print(f"not on {backbone.family.title}: {', '.join(left_out)}", file=sys.stderr)
    finish(options, wanted.bench(backbone), methods)


def wanted_of(options: argparse.Namespace) -> "Wanted":
    """What the options ask for."""
    from ..benchmarks.quality.wanted import Wanted

    alike = ("folder", "suite", "samples", "steps", "tasks", "size", "batch", "bf16", "vision", "judge", "infusion")
    given = {name: getattr(options, name) for name in alike}
    return Wanted(weights=options.weight, settings=options.set, **given)


def curves_of(options: argparse.Namespace) -> list[int]:
    """The seeds whose curves over the strength are drawn."""
    return options.seeds[:1] if options.curves else []


def finish(options: argparse.Namespace, bench: "Bench", methods: "Mapping[str, Method]") -> None:
    """Does what is not there yet of a benchmark, prints the table, writes figures and report."""
    from ..benchmarks.quality.figures import figures, overlap, row_of
    from ..benchmarks.quality.page import page, table
    from ..benchmarks.quality.protocol import run_all
    from ..benchmarks.speed.timing import machine
    from ..painting.config import MODES

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    suite, curves = bench.suite, curves_of(options)
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
