"""`cidm wish`: a wish in plain words, with a picture of what it is about, or a bank that has it, painted and checked."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..text_file import read_text
from .arguments import add_guidance, add_model, whole
from .model import guidance_of, load_base
from .progress import counting_bar, warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("wish", nargs="+", help="what you would like to see; more of them change the first, as 'now at night' does")
    add_model(parser)
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of all that is random (default: %(default)s)")
    parser.add_argument("--image", type=Path, action="append", default=[], help="a picture of what the wish is about; may be repeated")
    parser.add_argument("--mask", type=Path, action="append", default=[], help="where it is in that picture: white there; one for each")
    parser.add_argument("--bank", type=Path, help="a bank: what it has is painted with its concept, which is better than a picture")
    parser.add_argument("--answer", type=Path, metavar="FILE", help="what a language model answered to --ask, instead of plain rules")
    parser.add_argument("--ask", action="store_true", help="print what to ask a language model, and paint nothing")
    parser.add_argument("--identity", type=float, help="how strongly the picture is followed, from 0 to 2 (default: by kind of wish)")
    parser.add_argument("--negative", default="", help="what else the picture should not be")
    parser.add_argument("--text-guidance", type=float, default=0.0, help="guidance to the words alone beside --guidance (default: 0)")
    parser.add_argument("--count", type=whole(1), default=4, help="candidates, of which the best is kept (default: %(default)s)")
    parser.add_argument(
        "--tower", help="an image tower to pick by, as of `cidm evaluate`: 'doodle', a folder or a file (default: Doodle's on Doodle)"
    )
    parser.add_argument("--likeness", type=float, default=0.5, help="the part of likeness in a score, the rest is the words (default: 0.5)")
    parser.add_argument("--bound", type=float, default=0.2, help="try once more below this cosine with the words (default: %(default)s)")
    parser.add_argument("--steps", type=whole(1), default=25, help="sampling steps (default: %(default)s)")
    add_guidance(parser)
    parser.add_argument("--all", action="store_true", help="write every candidate")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the pictures (default: this one)")


def run(options: argparse.Namespace) -> None:
    """Reads the wish, paints candidates, and prints what was understood and the file of the best one."""
    from ..bank.bank import Bank
    from ..evaluation.wishing import grant
    from ..painting.wish_answer import question
    from .generate import write_painted

    bank = Bank(options.bank) if options.bank else Bank(options.out / ".no-bank")
    if options.ask:
        print(question(" ".join(options.wish), bank.vocabulary))
        return
    wish, told = understood(options, bank)
    order, tower = order_of(options, wish), tower_of(options)
    print("\n".join(told))
    backbone = load_base(options, on_cuda="float16")
    order = replace(order, guidance=guidance_of(options, backbone))
    with counting_bar("painting", "step") as show:
        granted, warnings = grant(backbone, bank, order, tower, options.size or backbone.size, options.seed, show)
    warn(warnings)
    options.out.mkdir(parents=True, exist_ok=True)
    if granted.pick:
        print(granted.pick.table)
    for number in range(len(granted.pictures)) if options.all else (granted.best,):
        again, candidate = divmod(number, options.count)
        start = "wish-again" if again else "wish"
        print(write_painted(granted.pictures[number], options.out, start, wish.prompt, options.seed + candidate))
    print(wish.reply)


def understood(options: argparse.Namespace, bank: Any) -> tuple[Any, list[str]]:
    """The wish as it was read, and what is told of it: guesses, and the prompt. Raises ``ValueError`` for one that names nothing."""
    from ..painting.wish_reading import read_wish

    wish, notes = None, []
    for number, text in enumerate(options.wish):
        said = read_text(options.answer) if options.answer and number == len(options.wish) - 1 else text
        wish, more = read_wish(said, bank.vocabulary, wish)
        notes += [note for note in more if note not in notes]
    assert wish is not None
    if not wish.prompt.strip():
        raise ValueError(f"the wish {' / '.join(options.wish)!r} names nothing to paint: say what the picture is to show")
    negative = ", ".join(filter(None, [wish.negative, options.negative]))
    wish = replace(wish, negative=negative, identity=wish.identity if options.identity is None else options.identity)
    said = f"{wish.kind}: {wish.prompt}" + (f"; not: {wish.negative}" if wish.negative else "")
    return wish, [*(f"note: {note}" for note in notes), said]


def order_of(options: argparse.Namespace, wish: Any) -> Any:
    """What is to be painted, from the command line; its guidance is known once there is a base."""
    import numpy as np
    import torch

    from ..evaluation.wishing import Order
    from ..training.folder import read_mask
    from .weave import read_image

    if options.mask and len(options.mask) != len(options.image):
        raise ValueError(f"{len(options.mask)} masks for {len(options.image)} pictures: give one --mask for each --image, or none")
    images = [torch.from_numpy(np.array(read_image(file))).permute(2, 0, 1).float() / 127.5 - 1 for file in options.image]
    masks = [read_mask(file, image) for file, image in zip(options.mask, images, strict=False)]
    return Order(
        wish,
        images,
        masks,
        options.count,
        options.steps,
        text_guidance=options.text_guidance,
        likeness=options.likeness,
        bound=options.bound,
    )


def tower_of(options: argparse.Namespace) -> Any:
    """The image tower to pick by, if there is one."""
    from ..engines.towers import load_tower

    name = options.tower or ("doodle" if options.base == "doodle" else "")
    return load_tower(name) if name else None
