"""Arguments that several commands share, and their types."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path


def whole(least: int, multiple: int = 1) -> Callable[[str], int]:
    """Makes an argument type: a whole number of at least ``least``, a multiple of ``multiple``."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least or int(text) % multiple:
            of = f", a multiple of {multiple}" if multiple > 1 else ""
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}{of}")
        return int(text)

    return number


def sides(least: int, multiple: int = 1) -> Callable[[str], tuple[int, int]]:
    """Makes an argument type: width and height of a picture, as in 768x512, or both as one whole number."""
    side = whole(least, multiple)

    def both(text: str) -> tuple[int, int]:
        width, wide, height = text.partition("x")
        try:
            return side(width), side(height if wide else width)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, or two of them as in 768x512") from error

    return both


def between(least: float, most: float = math.inf) -> Callable[[str], float]:
    """Makes an argument type: a number from ``least`` to ``most``."""

    def number(text: str) -> float:
        span = f"a number of at least {least:g}" if math.isinf(most) else f"a number from {least:g} to {most:g}"
        try:
            given = float(text)
        except ValueError:
            given = math.nan
        if not (least <= given <= most and math.isfinite(given)):
            raise argparse.ArgumentTypeError(f"{text!r}: expected {span}")
        return given

    return number


def add_model(parser: argparse.ArgumentParser, wide: bool = False) -> None:
    """Adds which base model a command works on, and where; ``wide``: its pictures may have two sides."""
    parser.add_argument(
        "--base",
        "--model",
        default="doodle",
        help="'doodle', a diffusers folder, or a .safetensors or .ckpt file of Stable Diffusion 1 or SDXL; to learn and to paint also a "
        "diffusers folder of Flux.1, Chroma, Lumina 2, Z-Image, Qwen-Image, Stable Diffusion 3.5 or Flux.2 Klein (default: %(default)s)",
    )
    size = "pixels of a picture's side, or WIDTHxHEIGHT" if wide else "pixels of a picture's side"
    parser.add_argument("--size", type=(sides if wide else whole)(64, 8), help=f"{size} (default: what the base was made for)")
    parser.add_argument("--device", help="torch device (default: the fastest there is)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16", "float8_e4m3fn"),
        help="of the frozen base (default: half on CUDA, else float32); in float8_e4m3fn the blocks of a transformer take half as much",
    )


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """Adds the sampler's guidance; ``guidance_of`` in model.py says what stands for none."""
    about = "classifier-free guidance (default: what suits the base: 5, of Doodle 2, of Flux.1 1, of other transformers 4 or 4.5)"
    parser.add_argument("--guidance", type=float, help=about)


def add_model_and_bank(parser: argparse.ArgumentParser, wide: bool = False) -> None:
    """Adds the base model, the bank and the seed; ``wide`` as in ``add_model``."""
    add_model(parser, wide)
    parser.add_argument("--bank", type=Path, required=True, help="folder of the concept bank")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of all that is random (default: %(default)s)")
