"""`cidm demo`: three Doodle concepts learned one after the other, painted, scored and shown."""

import argparse
import logging
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("demo"), help="where the report, the sheet and the bank go (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Learns, paints and scores, and tells on stderr how far it is."""
    from ..evaluation.demo import run as run_demo

    logging.basicConfig(format="%(message)s")
    logging.getLogger("cidm").setLevel(logging.INFO)
    run_demo(options.folder)
