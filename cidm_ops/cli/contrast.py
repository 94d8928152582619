"""`cidm contrast`: the words of new concepts told apart, from each other and from those of a bank, before training learns them."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_model_and_bank, whole
from .model import load_base
from .progress import counting_bar, warn

if TYPE_CHECKING:
    from ..training.canvases import Lesson
    from ..training.spaces import Contrast

SHOWN, ROW = 16, 8  # canvases on a sheet, and in a line of it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_bank(parser)
    parser.add_argument(
        "--words", nargs="+", required=True, metavar="NAME=CLASS", help="the concepts and what they are, such as rex=dog spot=dog"
    )
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        required=True,
        help="a folder of pictures for each of them, in the same order, with masks beside them (name_mask.png)",
    )
    parser.add_argument(
        "--vision",
        nargs="+",
        default=[],
        help="image towers that see the pictures: for Stable Diffusion 1 the whole CLIP-L (a folder of transformers, or a .safetensors "
        "file in its layout, with text_projection), for SDXL the vision model of CLIP bigG (default: for Doodle its own)",
    )
    parser.add_argument(
        "--common", nargs="*", help="things that the base paints, to stand beside the concepts (default: six; Doodle's own)"
    )
    parser.add_argument("--steps", type=whole(1), help="default: what suits the base, 300")
    parser.add_argument("--batch", type=whole(1), help="canvases of a step (default: 64)")
    parser.add_argument("--canvases", type=whole(1), help="how many are drawn (default: 256)")
    parser.add_argument("--lr", type=float, help="learning rate of the words (default: what suits the base, 1e-4; Doodle 1e-2)")
    parser.add_argument("--norm-stop", type=float, help="mean length of the words' rows at which they stop (default: 0.55; Doodle 2)")
    parser.add_argument("--existing", choices=("replace", "refuse"), default="replace", help="if the bank has a concept of a name")
    parser.add_argument("--sheet", type=Path, help="save some of the canvases as one picture")


def run(options: argparse.Namespace) -> None:
    """Contrasts the words, and prints the files that hold them and what they brought."""
    from ..bank.bank import Bank
    from ..evaluation.contrast import contrast_by
    from ..training.canvases import Lesson
    from ..training.contrasting import ContrastConfig, check_lessons, contrast_into
    from ..training.folder import from_folder
    from ..training.together import parse_names

    concepts = parse_names(options.words, "=", least=1)
    if len(options.images) != len(concepts):
        raise ValueError(f"{len(options.images)} folders for {', '.join(concepts)}: give one for each, in that order")
    chosen = {name: value for name in ("steps", "batch", "canvases", "lr", "norm_stop") if (value := getattr(options, name)) is not None}
    ContrastConfig(**chosen)
    # What cannot be was refused before the base is loaded.
    backbone = load_base(options, on_cuda="bfloat16")
    size = options.size or backbone.size
    lessons = [Lesson(name, word, from_folder(folder, size)) for (name, word), folder in zip(concepts.items(), options.images, strict=True)]
    with counting_bar("common things", "picture") as show:
        by = contrast_by(backbone, options.vision, options.common, options.seed, show)
    check_lessons(lessons, by)
    config = ContrastConfig.suiting(backbone.family, seed=options.seed, **chosen)
    with counting_bar("contrast", "step") as count:
        told = contrast_into(
            Bank(options.bank), backbone, by, lessons, config, options.existing, lambda step, steps, loss: count(step, steps)
        )
    warn(told.warnings)
    if options.sheet:
        save_canvases(lessons, by, options.sheet, options.seed)
    for name in concepts:
        print(told.bank.file(name))
    before, after = told.found
    print(f"a canvas is found by its text among those of all: {before:.2f} before, {after:.2f} after")


def save_canvases(lessons: "Sequence[Lesson]", by: "Contrast", file: Path, seed: int) -> None:
    """Saves the first canvases as one sheet; nothing is chosen."""
    import torch

    from ..bank.formats import write_picture
    from ..measure.report import contact_sheet
    from ..tokens import concept_words
    from ..training.canvases import canvases_of

    words = {lesson.name: concept_words(lesson.name, lesson.class_word) for lesson in lessons}
    canvases = canvases_of(lessons, words, by.common, SHOWN, by.side, seed)
    pictures = torch.stack([canvas.picture for canvas in canvases])
    rows = [(f"canvases {i + 1} to {i + ROW}", pictures[i : i + ROW]) for i in range(0, SHOWN, ROW)]
    write_picture(contact_sheet(rows), file)
