"""`cidm edit`: things of a bank painted into a photo, each where a mask is."""

import argparse
from pathlib import Path
from typing import Any

from ..painting.config import SCOPES
from .arguments import add_guidance, add_model_and_bank, whole
from .model import guidance_of, load_base
from .progress import warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_bank(parser)
    parser.add_argument("--image", type=Path, required=True, help="the photo")
    parser.add_argument(
        "--mask", type=Path, action="append", required=True, help="where: a picture of its size, white there; may be repeated"
    )
    parser.add_argument(
        "--prompt", action="append", required=True, help="what to paint there, <name> for a concept; one for each mask, in their order"
    )
    parser.add_argument(
        "--around", default="", help="what else is to be seen near the masks, in plain words (default: nothing is said of it)"
    )
    parser.add_argument("--negative", default="", help="what should not be there; <name> stands for a concept there too")
    parser.add_argument(
        "--denoise", type=float, default=1.0, help="1 inserts something new, 0.75 keeps the shape of what is there (default: %(default)s)"
    )
    parser.add_argument(
        "--margin", type=float, default=0.5, help="what the model sees around a mask, in longer sides of it (default: %(default)s)"
    )
    parser.add_argument("--feather", type=whole(0), default=8, help="pixels over which the edge of a mask fades (default: %(default)s)")
    parser.add_argument("--reach", choices=SCOPES, default=SCOPES[0], help="which words concepts change, as of `cidm generate`")
    parser.add_argument("--strength", type=float, default=1.0, help="of the concepts; 0 is the plain base (default: %(default)s)")
    parser.add_argument("--steps", type=whole(1), default=25, help="sampling steps (default: %(default)s)")
    add_guidance(parser)
    parser.add_argument("--out", type=Path, required=True, help="the edited photo, a PNG")


def run(options: argparse.Namespace) -> None:
    """Edits the photo, and prints the file."""
    from PIL import Image

    from ..bank.bank import Bank
    from ..bank.formats import write_picture
    from ..measure.report import to_pixels
    from ..painting.compose import AggregationConfig
    from ..painting.editing import Edit, edit
    from ..painting.paint import SamplingConfig

    if len(options.mask) != len(options.prompt):
        raise ValueError(f"{len(options.prompt)} prompts for {len(options.mask)} masks: give one --prompt for each --mask, in their order")
    if options.out.suffix.lower() != ".png":
        raise ValueError(f"--out {options.out}: expected a file that ends in .png, which keeps every pixel")
    bank = Bank(options.bank)
    for prompt in (*options.prompt, options.around, options.negative):
        bank.read(prompt)
    photo, holes = read_photo(options)
    how = AggregationConfig(strength=options.strength, scope=options.reach)
    backbone = load_base(options, on_cuda="float16")
    wanted = Edit(
        photo,
        holes,
        options.around,
        options.denoise,
        options.margin,
        options.size or backbone.size,
        options.feather,
    )
    config = SamplingConfig(options.steps, guidance_of(options, backbone), options.negative, how)
    edited, warnings = edit(backbone, bank, wanted, config, options.seed)
    warn(warnings)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_picture(Image.fromarray(to_pixels(edited[None])[0]), options.out)
    print(options.out)


def read_photo(options: argparse.Namespace) -> tuple[Any, list[tuple[str, Any]]]:
    """The photo ``[3, H, W]`` in [-1, 1], and each prompt with its mask ``[H, W]``."""
    import numpy as np
    import torch

    from ..bank.picture_file import in_colours, open_picture
    from ..training.folder import read_mask

    try:
        pixels = np.array(in_colours(open_picture(options.image)))
    except ValueError as error:
        raise ValueError(f"{options.image}: {error}") from error
    photo = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    masks = [read_mask(file, photo)[0] for file in options.mask]
    return photo, list(zip(options.prompt, masks, strict=True))
