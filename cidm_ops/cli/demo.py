"""`cidm demo`: three Doodle concepts learned one after the other, painted, scored and shown."""

import argparse
import logging
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("demo"), help="where the report, the sheet and the bank go (default: %(default)s)"
    )
    parser.add_argument("--base", default="doodle", help="'doodle', or the folder of another Doodle (default: %(default)s)")
    parser.add_argument("--vision", help="image tower, as of `cidm evaluate` (default: the one that ships)")
    parser.add_argument("--judge", default="doodle", help="a judge of parts, as of `cidm evaluate` (default: the one that ships)")


def run(options: argparse.Namespace) -> None:
    """Learns, paints and scores, and tells on stderr how far it is."""
    from ..engines.parts import load_judge
    from ..engines.towers import load_tower
    from ..evaluation.demo import run as run_demo
    from ..evaluation.doodle import DoodleBench

    tower = load_tower(options.vision) if options.vision else None
    bench = DoodleBench(options.base, tower, load_judge(options.judge))
    logging.basicConfig(format="%(message)s")
    logging.getLogger("cidm").setLevel(logging.INFO)
    run_demo(options.folder, bench)
