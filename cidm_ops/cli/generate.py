"""`cidm generate`: prompts painted with the concepts of a bank."""

import argparse
import re
from pathlib import Path
from typing import Any

from ..painting.config import MODES, PADDED, PLACE, PRESETS, REGION_OVERLAPS, REGION_TEXTS, SCOPES, STREAMS, ResidualConfig
from ..text_file import read_text
from .arguments import add_guidance, add_model_and_bank, whole
from .model import guidance_of, load_base
from .progress import counting_bar, warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_bank(parser, wide=True)
    parser.add_argument("--prompt", action="append", required=True, help="may be repeated; <name> stands for a concept")
    parser.add_argument("--negative", default="", help="what the pictures should not be; <name> stands for a concept there too")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="how the concepts' weights are found (default: %(default)s)",
    )
    parser.add_argument(
        "--stream",
        choices=STREAMS,
        default=STREAMS[0],
        help="where Infusion concepts take their attention maps from: the plain base beside them, or themselves (default: %(default)s)",
    )
    parser.add_argument(
        "--reach",
        choices=(*SCOPES, PLACE),
        default=SCOPES[0],
        help="which words of a prompt concepts change: all, their own and the end, or their own; by kind: their own if they are styles; "
        "where it stands: a place of the picture, around which the base paints plain words (default: %(default)s)",
    )
    parser.add_argument(
        "--start",
        type=float,
        default=0.0,
        metavar="PART",
        help="concepts act from this part of the sampling on, from 0 to 1; until then the base paints plain words (default: %(default)s)",
    )
    parser.add_argument(
        "--region-guidance", type=float, default=1.0, metavar="TIMES", help="guidance in regions, times --guidance (default: %(default)s)"
    )
    parser.add_argument(
        "--overlap",
        choices=REGION_OVERLAPS,
        default=REGION_OVERLAPS[0],
        help="who has a place that regions share: all of them, or the one that answers more strongly (default: %(default)s)",
    )
    parser.add_argument(
        "--regions-apart",
        type=float,
        default=0.0,
        metavar="PART",
        help="on transformers: until this part of the sampling regions do not look at each other (default: %(default)s)",
    )
    parser.add_argument(
        "--region-texts",
        choices=REGION_TEXTS,
        default=PADDED,
        help="on transformers: a region's text as they were trained, or with little of what fills it up (default: %(default)s)",
    )
    add_regions(parser)
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="fast",
        help="how regions are painted: in one pass, with passes for each in every step, or in the first steps (default: %(default)s)",
    )
    parser.add_argument("--strength", type=float, default=1.0, help="of the concepts; 0 is the plain base (default: %(default)s)")
    parser.add_argument("--steps", type=whole(1), default=25, help="sampling steps (default: %(default)s)")
    add_guidance(parser)
    parser.add_argument("--count", type=whole(1), default=1, help="pictures per prompt, seeds counting up (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the pictures (default: this one)")


def add_regions(parser: argparse.ArgumentParser) -> None:
    """Adds prompts for parts of the picture."""
    parser.add_argument(
        "--region",
        action="append",
        default=[],
        metavar='"LEFT,TOP,RIGHT,BOTTOM: PROMPT"',
        help="a prompt for a part of the picture, edges from 0 to 1, such as '0,0,0.5,1: a <dog> in the snow'; may be repeated",
    )
    parser.add_argument("--regions", type=Path, metavar="FILE.json", help="regions as the node Draw Regions writes them")


def run(options: argparse.Namespace) -> None:
    """Paints every prompt as often as asked, and prints the files."""
    from ..bank.bank import Bank
    from ..painting.compose import AggregationConfig
    from ..painting.paint import SamplingConfig, paint, unit_noise
    from ..painting.texts import show_encoding

    bank, regions = Bank(options.bank), regions_of(options)
    how = AggregationConfig(
        mode=options.mode,
        strength=options.strength,
        scope=options.reach,
        start=options.start,
        inside=options.region_guidance,
        overlap=options.overlap,
        apart=options.regions_apart,
        padding=options.region_texts == PADDED,
    )
    infusion, passes = ResidualConfig(options.stream), PRESETS[options.preset]
    for prompt in (*options.prompt, options.negative, *(text for text, _ in regions)):
        bank.read(prompt)
    backbone = load_base(options, on_cuda="float16", transformers=True)
    width, height = options.size or (backbone.size, backbone.size)
    config = SamplingConfig(options.steps, guidance_of(options, backbone), options.negative, how, infusion, passes)
    options.out.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(options.prompt, 1):
        for seed in range(options.seed, options.seed + options.count):
            noise = unit_noise(backbone.family, seed, 1, height, width)
            with counting_bar("encoding", "part", delay=1) as show, show_encoding(show):
                pictures, warnings = paint(backbone, bank, prompt, noise, config, regions)
            warn(warnings)
            print(write_painted(pictures[0], options.out, f"{number:02d}", prompt, seed))


def regions_of(options: argparse.Namespace) -> list[Any]:
    """The prompts and masks of all regions that were asked for."""
    from ..method.boxes import read_boxes, read_region

    regions = [read_region(text) for text in options.region]
    return regions + (read_boxes(read_text(options.regions)) if options.regions else [])


def write_painted(picture: Any, folder: Path, start: str, prompt: str, seed: int) -> Path:
    """Writes a picture ``[3, H, W]`` in [-1, 1] to a file whose name is that start, its prompt and its seed, and returns that file."""
    from PIL import Image

    from ..bank.formats import write_picture

    pixels = ((picture.permute(1, 2, 0).cpu() + 1) * 127.5).round().byte().numpy()
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
    file = folder / f"{start}-{words}-{seed}.png"
    write_picture(Image.fromarray(pixels), file)
    return file
