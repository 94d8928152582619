"""`cidm train`: a concept learned from a folder of pictures into a bank, or several from one picture; by several processes together where
`accelerate launch` or `torchrun` started it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..training.config import EXISTING, FITS, PER_ORIGINAL
from .arguments import add_model_and_bank, whole
from .model import load_base
from .progress import training_bar, warn

if TYPE_CHECKING:
    from ..training.config import TrainingConfig
    from ..training.dataset import Dataset
    from ..training.processes import Processes
    from ..training.together import Masks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_bank(parser)
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        help="folder of 4 to 7 pictures, captions in .txt files of the same name; with --together also a single picture",
    )
    parser.add_argument("--class-word", help="what it is in plain words, such as 'dog' or 'teddy bear'")
    parser.add_argument("--name", help="the concept's name, in prompts <name> (default: the name of the folder)")
    parser.add_argument(
        "--together",
        nargs="+",
        metavar="NAME=CLASS",
        help="in place of --name and --class-word: all concepts that the pictures show, such as rex=dog tom=cat",
    )
    parser.add_argument(
        "--masks",
        type=Path,
        nargs="+",
        help="with --together and a single picture: where each of them is, a file for each in the same order; each is then cut out and "
        "learned alone",
    )
    parser.add_argument("--style", action="store_true", help="the concept is a style, not a thing")
    parser.add_argument(
        "--method",
        help="cidm: low-rank factors and words; infusion: residuals at the class word; disendiff: cidm, and the words of several concepts "
        "look apart; clif: cidm, and the words follow the pictures in an image tower's space; lora: low-rank factors, called by name, on "
        "transformers (default: cidm, with --together disendiff, on transformers lora)",
    )
    parser.add_argument(
        "--steps",
        type=whole(1),
        help="training steps (default: what suits the base: 800, 500 for infusion, 250 for disendiff, 1500 for lora; Doodle 350, 150 "
        "and 200)",
    )
    parser.add_argument(
        "--fit",
        choices=FITS,
        help=f"how pictures of other shapes are fitted (default: {FITS[0]}, with --together buckets)",
    )
    parser.add_argument(
        "--grow",
        type=Path,
        metavar="FOLDER",
        help="pictures that an edit model made of the thing: those that show the same individual are learned beside --images",
    )
    parser.add_argument(
        "--vision",
        nargs="+",
        default=[],
        help="image towers, as of `cidm evaluate`: with --grow the one that tells individuals apart, with --method clif those whose space "
        "words are compared in (default: for Doodle its own)",
    )
    parser.add_argument(
        "--per-original",
        type=whole(1),
        help=f"with --grow: how many of them at most for each picture of --images (default: {PER_ORIGINAL})",
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
    parser.add_argument(
        "--assistant",
        type=Path,
        help="on a distilled transformer: a LoRA file that acts while the concept is learned and is then left off, so that the base stays "
        "distilled",
    )
    parser.add_argument("--flip", action="store_true", help="mirror every second picture")
    parser.add_argument("--rank", type=whole(1), help="rank of the factors (default: 4, on transformers 16)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of cidm_ops/training/config.py or of the method, such as min_snr=5 or mode=orthogonal; may be repeated",
    )


def run(options: argparse.Namespace) -> None:
    """Learns one concept, or several together, and prints the files that hold them. Of several processes the first one speaks."""
    from ..training.processes import ALONE

    if os.environ.get("WORLD_SIZE", "1") in ("", "1") or "RANK" not in os.environ:
        learn(options, ALONE)
        return
    from ..cluster.launched import launched

    with launched(options.device) as (processes, device):
        options.device = device
        learn(options, processes)


def learn(options: argparse.Namespace, processes: "Processes") -> None:
    """Learns what the options ask for, with a share of every step in each of the processes."""
    from ..bank.bank import Bank
    from ..bank.exchange import import_file
    from ..training.folder import from_folder, from_picture
    from ..training.method import Task
    from ..training.methods import configure, configure_for, method_named
    from ..training.together import cut_outs, learn_together

    concepts = concepts_of(options)
    tower = tower_of(options)
    kind = "style" if options.style else "thing"
    given = {name: value for name in ("steps", "rank") if (value := getattr(options, name)) is not None}
    joint = is_transformer(options.base)
    method = method_named(options.method or default_method(options, joint))
    if options.vision and not (method.contrasts or options.grow):
        raise ValueError(f"--vision, and method {method.name!r} looks at no pictures by it: expected --grow or --method clif beside")
    config = configure(method.name, **given).parse(options.set)
    (name, class_word), *others = concepts.items()
    task = Task(name=name, class_word=class_word, others=dict(others), config=config, existing=options.existing)
    if not options.masks:  # with them each is learned alone
        method.words_by_name(task)
    # What cannot be was refused before the base is loaded.
    with processes.one_reads_first():
        backbone = load_base(options, on_cuda="bfloat16", transformers=True)
    method.check_family(backbone.family)
    assistant = None
    if options.assistant:
        (assistant,), remarks = import_file(options.assistant, architecture=backbone.architecture)
        warn(remarks)
    config = configure_for(backbone.family, method.name, seed=options.seed, kind=kind, templates=method.templates(kind), **given)
    config = for_all(config.parse(options.set), processes)
    size, fit = options.size or backbone.size, options.fit or ("buckets" if options.together else FITS[0])
    read = from_picture if options.together and options.images.is_file() else from_folder
    images = read(options.images, size, fit, options.flip)
    if options.grow:
        made = from_folder(options.grow, size, fit, options.flip)
        images = grown(images, made, tower, options.per_original or PER_ORIGINAL, told=processes.first)
    prior = options.prior and from_folder(options.prior, size, fit)
    task = replace(task, config=config, prior=prior, assistant=assistant, processes=processes)
    if method.contrasts:
        from ..evaluation.contrast import contrast_by

        task = replace(task, contrast=contrast_by(backbone, options.vision, seed=options.seed))
    data: Dataset | dict[str, Dataset] = images
    if options.masks:
        data = cut_outs(images, masks_of(options.masks, images, list(concepts)), inside=bool(config.settings().get("anchor")))
    told: list[str] = []

    def tell(said: str) -> None:
        if said not in told and processes.first:
            warn([said])
            told.append(said)

    with training_bar(shown=processes.first) as show:
        runs = learn_together(Bank(options.bank), backbone, data, task, on_step=show, tell=tell)
    for run in runs:
        for said in run.warnings:
            tell(said)
    for name in concepts if processes.first else ():
        print(runs[-1].bank.file(name))


def is_transformer(base: str) -> bool:
    """Whether a base is a diffusers folder of a transformer."""
    return (Path(base).expanduser() / "transformer").is_dir()


def default_method(options: argparse.Namespace, joint: bool) -> str:
    """Returns the method that is taken where none is named. With masks several concepts are learned each on its own."""
    if joint:
        return "lora"
    return "disendiff" if options.together else "cidm"


def for_all(config: "TrainingConfig", processes: "Processes") -> "TrainingConfig":
    """Returns the settings of a run of several processes: the batch is that of all of them, which is said, since the file tells it."""
    if processes.count == 1:
        return config
    whole = config.update(batch=processes.count * config.batch)
    if processes.first:
        each = f"{processes.count} processes, each with a batch of {config.batch}"
        print(f"{each}: a step takes {whole.batch * whole.accumulate} pictures, as with --set batch={whole.batch} in one", file=sys.stderr)
    return whole


def concepts_of(options: argparse.Namespace) -> dict[str, str]:
    """Returns the class words of what is to be learned, by name. Raises ``ValueError`` for options that do not go together."""
    from ..training.together import parse_names

    if options.together:
        if options.name or options.class_word:
            raise ValueError("--together names all concepts and what they are: leave out --name and --class-word")
        concepts = parse_names(options.together, "=")
        if options.masks and len(options.masks) != len(concepts):
            raise ValueError(f"{len(options.masks)} masks for {', '.join(concepts)}: give one for each, in that order")
        return concepts
    if not options.class_word:
        raise ValueError("--class-word is missing: say what the pictures show, such as --class-word dog, or name several with --together")
    if options.masks:
        raise ValueError("--masks is for --together: the mask of a picture in a folder lies beside it, as name_mask.png")
    return {options.name or options.images.resolve().name: options.class_word}


def tower_of(options: argparse.Namespace) -> str:
    """Returns which image tower sifts. Raises ``ValueError`` for options that do not go together, and for none where one is needed."""
    if not options.grow:
        if options.per_original:
            raise ValueError("--per-original is for --grow, which names a folder of pictures that an edit model made")
        return ""
    if options.together:
        raise ValueError("--grow is for one concept: with --together nobody knows whom a picture has to show")
    if not options.vision and options.base != "doodle":
        raise ValueError("--grow needs an image tower that tells your things apart: give one with --vision, such as a folder of DINOv2")
    if len(options.vision) > 1:
        raise ValueError(f"--grow with {len(options.vision)} image towers: one tells individuals apart, give that alone")
    return options.vision[0] if options.vision else "doodle"


def grown(images: "Dataset", made: "Dataset", tower: str, per_original: int, told: bool = True) -> "Dataset":
    """Returns the pictures with those of an edit model behind them that show the same individual, and says what became of each, if it is to
    be ``told``.
    """
    from ..engines.towers import load_tower
    from ..measure.sifting import Sifting, describe_rest, grow_sifted

    whole, sifted = grow_sifted(load_tower(tower), images, made, Sifting(per_original))
    if told:
        warn([*made.warnings, *sifted.remarks(), *describe_rest(sifted, made.names)])
        print(f"cidm: {sifted.text()}", file=sys.stderr)
    return whole


def masks_of(files: Sequence[Path], images: "Dataset", names: Sequence[str]) -> "Masks":
    """Reads the masks of all concepts of a single picture. Raises ``ValueError`` for several pictures."""
    from ..training.folder import read_mask

    if len(images) != 1:
        raise ValueError(f"--masks with {len(images)} pictures: expected a single picture")
    return {name: [read_mask(file, images.pictures[0])] for name, file in zip(names, files, strict=True)}
