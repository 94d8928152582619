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
    "bank": (("counts",), "how a bank of made-up concepts grows, up to 100,000"),
    "calibrate": (("folder", "seeds", "rows"), "two concepts from one picture: calibrated, from cut-outs, and plainly joint"),
    "cluster": ((), "two workers of a Ray cluster beside one process, and what the engine costs"),
    "consolidation": ((), "what earlier ones cost a training step"),
    "contrast": (("folder", "seeds", "rows"), "two concepts of one class: contrasted words, and plain training"),
    "editing": (("folder", "scenes", "rows"), "whether concepts painted into photos where a mask is are there, and the rest stays"),
    "infusion": (("folder",), "what a concept with one background does to everything else, by Infusion and by weights"),
    "modes": (("folder", "seeds", "modes"), "what each consolidation mode does to ten Doodle concepts"),
    "overlap": (("folder", "scenes"), "whether things stand in their places when their boxes overlap, shared or the stronger one's"),
    "regions": (("comfy", "pixels", "family"), "what regions cost"),
    "routing": (("folder",), "where the weights of a prompt go"),
    "scenes": (("comfy", "folder", "scenes", "seeds", "rows", "judge"), "whether several concepts stand each in its place"),
    "sift": (("folder", "seeds", "rows"), "whether pictures of somebody else are sifted out, and what learning from the rest gains"),
    "start": (("folder", "seeds", "rows"), "whether words that begin as those of the nearest concept halve the steps"),
    "text": ((), "what a prompt's text costs, new, repeated, and soft in a bank of a thousand, and how long a command takes to begin"),
    "tokens": ((), "what layer-wise words cost"),
    "train": (("comfy", "family"), "our trainer and ComfyUI's own"),
    "waves": (("folder", "seeds"), "what concepts that are learned at the same time lose"),
    "weave": (("folder", "scenes"), "whether concepts woven into a picture are in their places, and the rest stays"),
    "wish": (("folder", "wishes"), "whether wishes are read right, and how alike what is painted from one picture is"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=tuple(BENCHES), help="; ".join(about for _, about in BENCHES.values()))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument(
        "--folder",
        type=Path,
        help="for calibrate, contrast, editing, infusion, modes, overlap, scenes, sift, start, waves, weave and wish: keeps what is done "
        "(default: runs/NAME); for routing: a bank (default: Doodle's)",
    )
    parser.add_argument(
        "--seeds", type=whole(1), default=3, help="for calibrate, contrast, modes, scenes, sift, start and waves (default: %(default)s)"
    )
    parser.add_argument("--scenes", type=whole(3), help="for editing, overlap, scenes and weave (default: 84, 40, 200 and 60)")
    parser.add_argument("--wishes", type=whole(1), help="for wish (default: 100)")
    parser.add_argument("--judge", help="for scenes: a judge of parts, as of `cidm evaluate` (default: the one that ships)")
    parser.add_argument("--pixels", type=whole(64, 64), help="for regions: the picture's side (default: 512 with a GPU, 256 without)")
    parser.add_argument("--family", choices=("flux", "nextdit", "qwen"), help="for regions and train: a transformer, not SD1.5 and Doodle")
    parser.add_argument("--counts", type=whole(1), nargs="+", help="for bank: how many concepts (default: 1000 10000 100000)")
    parser.add_argument("--rows", nargs="+", help="for calibrate, contrast, editing, scenes, sift and start: which rows (default: all)")
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
