"""`cidm train`: a concept learned from a folder of pictures into a bank."""

import argparse
from pathlib import Path

from ..training.config import EXISTING, FITS
from .arguments import add_model_and_bank, whole
from .model import load_base
from .progress import training_bar, warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_bank(parser)
    parser.add_argument("--images", type=Path, required=True, help="folder of 4 to 7 pictures, captions in .txt files of the same name")
    parser.add_argument("--class-word", required=True, help="what it is in plain words, such as 'dog' or 'teddy bear'")
    parser.add_argument("--name", help="the concept's name, in prompts <name> (default: the name of the folder)")
    parser.add_argument("--style", action="store_true", help="the concept is a style, not a thing")
    parser.add_argument(
        "--method",
        default="cidm",
        help="cidm: low-rank factors and words; infusion: residuals at the class word (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=whole(1), help="training steps (default: what suits the base: 800, 500 for infusion; Doodle 350 and 150)"
    )
    parser.add_argument(
        "--fit",
        choices=FITS,
        default=FITS[0],
        help="how pictures of other shapes are fitted (default: %(default)s)",
    )
    parser.add_argument(
        "--prior", type=Path, help="folder of pictures of the plain class, for --set prior=1 (default: the base paints some)"
    )
    parser.add_argument(
        "--existing",
        choices=EXISTING,
        default=EXISTING[0],
        help="if the bank has a concept of that name that was learned in any other way (default: %(default)s)",
    )
    parser.add_argument("--flip", action="store_true", help="mirror every second picture")
    parser.add_argument("--rank", type=whole(1), help="rank of the factors (default: 4)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of cidm_ops/training/config.py or of the method, such as min_snr=5 or mode=orthogonal; may be repeated",
    )


def run(options: argparse.Namespace) -> None:
    """Learns one concept, and prints the file that holds it."""
    from ..bank.bank import Bank
    from ..training.folder import from_folder
    from ..training.methods import configure, configure_for, method_named
    from ..training.task import Task, learn_into

    kind = "style" if options.style else "thing"
    given = {name: value for name in ("steps", "rank") if (value := getattr(options, name)) is not None}
    method = method_named(options.method)
    configure(method.name, **given).parse(options.set)  # what cannot be is refused before the base is loaded
    backbone = load_base(options, on_cuda="bfloat16")
    config = configure_for(backbone.family, method.name, seed=options.seed, kind=kind, templates=method.templates(kind), **given)
    config = config.parse(options.set)
    images = from_folder(options.images, options.size or backbone.size, options.fit, options.flip)
    task = Task(
        name=options.name or options.images.resolve().name,
        class_word=options.class_word,
        config=config,
        existing=options.existing,
        prior=options.prior and from_folder(options.prior, options.size or backbone.size, options.fit),
    )
    told: list[str] = []

    def tell(said: str) -> None:
        if said not in told:
            warn([said])
            told.append(said)

    with training_bar() as show:
        learned = learn_into(Bank(options.bank), backbone, images, task, on_step=show, tell=tell)
    for said in learned.warnings:
        tell(said)
    print(learned.bank.file(task.name))
