"""`cidm doctor`: what files, folders, banks and checkpoints are, and what of them would be used; without a path, what this machine has."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..printable import one_line, printable
from .arguments import whole

LIBRARIES = ("torch", "safetensors", "numpy", "pillow", "einops", "diffusers", "transformers", "accelerate", "tokenizers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="a file or a folder (default: none, tell about this machine)")
    parser.add_argument("--architecture", default="", help="such as sd1-16x768, where a file's layers do not say it")
    parser.add_argument("--rank", type=whole(1), default=16, help="for kinds that are no low-rank factors (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Prints what lies at every path. Raises ``ValueError`` naming those that cannot be used."""
    if not options.paths:
        print("\n".join(machine()))
        return
    from ..inspection import inspect, lines_of

    wrong = []
    for path in options.paths:
        found = inspect(path, options.architecture, options.rank)
        print(printable("\n".join(map(one_line_kept, lines_of(found)))))
        wrong += [] if found.usable else [str(path)]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(options.paths)} cannot be used: {', '.join(wrong)}")


def one_line_kept(line: str) -> str:
    """A line of a report with its indent; what a file says in it stays in one line."""
    bare = line.lstrip(" ")
    return " " * (len(line) - len(bare)) + one_line(bare)


def machine() -> list[str]:
    """The versions of what the pack works with, the fastest device, and the formats of pictures that can be read."""
    import torch
    from PIL import features

    device = "CUDA" if torch.cuda.is_available() else "MPS" if torch.backends.mps.is_available() else "the processor"
    lines = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}", f"device: {device}"]
    for name in LIBRARIES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name}: not installed, pip install 'cidm[headless]'")
    known = [name for name in ("jpg", "webp", "avif") if name in features.get_supported_codecs() + features.get_supported_modules()]
    return [*lines, f"pictures beside PNG: {', '.join(known)}"]
