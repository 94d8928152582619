"""`cidm doodle`: the model that ships with the pack, trained from nothing, and how well it obeys captions."""

import argparse
from pathlib import Path
from typing import Any

from ..doodle.training.stages import STAGES, STEPS


def add_commands(into: Any) -> None:
    about = "train Doodle from nothing: every stage keeps a checkpoint in the folder and continues from it; a finished one is only read"
    train = into.add_parser("train", help="train Doodle from scratch; see its own --help", description=about)
    train.set_defaults(run=run_training)
    train.add_argument("--folder", type=Path, required=True, help="where pictures, latents and checkpoints are kept (4 GB)")
    train.add_argument("--pictures", type=int, default=40_000, help="renderings to learn from (default: %(default)s)")
    train.add_argument("--device", help="torch device (default: cuda where there is one, else cpu)")
    train.add_argument("--workers", type=int, default=2, help="processes that render (default: %(default)s)")
    train.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="which of them (default: all)")
    train.add_argument("--minutes", type=float, default=float("inf"), help="stop a stage after this time, with a checkpoint")
    for stage, steps in STEPS.items():
        train.add_argument(f"--{stage}-steps", type=int, default=steps, help="default: %(default)s")

    about = "how well the shipped model obeys captions: sampled pictures, read by a classifier trained on renderings"
    judge = into.add_parser("judge", help="measure how well Doodle obeys captions; see its own --help", description=about)
    judge.set_defaults(run=run_judge)
    judge.add_argument("--folder", type=Path, required=True, help="the folder of `cidm doodle train`: its renderings teach the classifier")
    judge.add_argument("--captions", type=int, default=500, help="half with one thing, half with two (default: %(default)s)")
    judge.add_argument("--pictures", type=int, default=40_000, help="renderings to learn from (default: %(default)s)")
    judge.add_argument("--workers", type=int, default=2, help="processes that render (default: %(default)s)")
    judge.add_argument("--steps", type=int, default=1500, help="training steps of the classifier (default: %(default)s)")
    judge.add_argument("--json", type=Path, help="write the figures here too")
    judge.add_argument("--sheet", type=Path, help="save the pictures as one sheet")


def run_training(options: argparse.Namespace) -> None:
    from ..doodle.training.train import train

    train(options)


def run_judge(options: argparse.Namespace) -> None:
    from ..doodle.training.obedience import judge

    judge(options)
