"""`cidm bench`: sides compared in one run, in turns."""

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

from ..bank.files import write_atomically
from .arguments import whole

# Each is a module of benchmarks/speed; here is what its `run` takes of the command line, and what it measures.
BENCHES = {
    "aggregate": (("comfy",), "what concepts cost when painting"),
    "calibrate": (("folder", "seeds", "rows"), "two concepts from one picture: calibrated, from cut-outs, and plainly joint"),
    "consolidation": ((), "what earlier ones cost a training step"),
    "infusion": (("folder",), "what a concept with one background does to everything else, by Infusion and by weights"),
    "modes": (("folder", "seeds", "modes"), "what each consolidation mode does to ten Doodle concepts"),
    "regions": (("comfy", "pixels", "family"), "what regions cost"),
    "routing": (("folder",), "where the weights of a prompt go"),
    "scenes": (("comfy", "folder", "scenes", "seeds", "judge"), "whether several concepts stand each in its place"),
    "text": ((), "what a prompt's text costs, new, repeated, and soft in a bank of a thousand, and how long a command takes to begin"),
    "tokens": ((), "what layer-wise words cost"),
    "train": (("comfy", "family"), "our trainer and ComfyUI's own"),
    "weave": (("folder", "scenes"), "whether concepts woven into a picture are in their places, and the rest stays"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=tuple(BENCHES), help="; ".join(about for _, about in BENCHES.values()))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument(
        "--folder",
        type=Path,
        help="for calibrate, infusion, modes, scenes and weave: keeps what is done (default: runs/NAME); for routing: a bank (default: "
        "Doodle's)",
    )
    parser.add_argument("--seeds", type=whole(1), default=3, help="for calibrate, modes and scenes (default: %(default)s)")
    parser.add_argument("--scenes", type=whole(3), help="for scenes and weave (default: 200 and 60)")
    parser.add_argument("--judge", type=Path, help="for scenes: a judge of parts, as of `cidm evaluate`")
    parser.add_argument("--pixels", type=whole(64, 64), help="for regions: the picture's side (default: 512 with a GPU, 256 without)")
    parser.add_argument("--family", choices=("flux", "nextdit"), help="for regions and train: a transformer, instead of SD1.5 and Doodle")
    parser.add_argument("--rows", nargs="+", help="for calibrate: which of its rows (default: all)")
    parser.add_argument("--modes", nargs="+", help="for modes: which of them, and in which order")
    parser.add_argument(
        "--comfy",
        type=Path,
        default=Path("~/comfy/ComfyUI"),
        help="for aggregate, regions, scenes and train: a ComfyUI checkout (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Runs one benchmark and prints its figures."""
    side = import_module(f"..benchmarks.speed.{options.name}", __package__)
    figures = {"bench": options.name, **side.run(**given(options))}
    print(json.dumps(figures, indent=2))
    if options.json:
        write_atomically(json.dumps(figures, indent=2).encode(), options.json)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """What the ``run`` of a benchmark takes of the command line; what was left out is for it to choose."""
    taken, _ = BENCHES[options.name]
    return {option: getattr(options, option) for option in taken if getattr(options, option) is not None}
