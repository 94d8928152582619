"""`cidm weave`: concepts of a bank woven into a template picture, whose layout and background stay."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from .arguments import add_guidance, add_model_and_bank, whole
from .generate import add_regions, regions_of, write_painted
from .model import guidance_of, load_base
from .progress import counting_bar, warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_bank(parser)
    parser.add_argument("--image", type=Path, help="the template (default: the base paints --source)")
    parser.add_argument("--source", required=True, help="what the template shows, in plain words: 'a dog and a cat in the snow'")
    parser.add_argument("--prompt", required=True, help="the whole picture; <name> stands for a concept")
    parser.add_argument("--negative", default="", help="what the picture should not be; <name> stands for a concept there too")
    add_regions(parser)
    parser.add_argument(
        "--suppression", type=float, default=0.0, help="how far regions move away from what the plain base would paint there, such as 0.2"
    )
    parser.add_argument(
        "--keep-attention", type=float, default=0.5, help="part of the steps that look where the template does (default: %(default)s)"
    )
    parser.add_argument(
        "--keep-residual", type=float, default=0.8, help="part of the steps that have its features in one layer (default: %(default)s)"
    )
    parser.add_argument("--unlock", action="store_true", help="let what no region covers change too")
    parser.add_argument("--grow", type=whole(0), default=1, help="cells of the latent by which regions grow (default: %(default)s)")
    parser.add_argument("--strength", type=float, default=1.0, help="of the concepts; 0 is the plain base (default: %(default)s)")
    parser.add_argument("--steps", type=whole(2), default=50, help="of the way to noise, and of the way back (default: %(default)s)")
    parser.add_argument(
        "--corrections", type=whole(0), default=1, help="of each step to noise; each costs one more pass (default: %(default)s)"
    )
    add_guidance(parser)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the template and the picture (default: this one)")


def run(options: argparse.Namespace) -> None:
    """Weaves one picture, and prints the files of the template, as the autoencoder returns it, and of the picture."""
    from ..bank.bank import Bank
    from ..painting.compose import AggregationConfig, ParsedPrompt, encode
    from ..painting.config import WeaveConfig
    from ..painting.paint import SamplingConfig, weave
    from ..painting.weaving import invert_picture, template_of

    bank, regions = Bank(options.bank), regions_of(options)
    how = WeaveConfig(options.suppression, options.keep_attention, options.keep_residual, not options.unlock, options.grow)
    for prompt in (options.prompt, options.negative, *(text for text, _ in regions)):
        bank.read(prompt)
    if named := [*bank.read(options.source).strengths]:
        raise ValueError(f"--source {options.source!r} has the concept {named[0]}: expected plain words, as the base knows no concepts")
    backbone = load_base(options, on_cuda="float16")
    guided = SamplingConfig(guidance=guidance_of(options, backbone))
    config = replace(guided, negative=options.negative, aggregation=AggregationConfig(strength=options.strength))
    latents = template_latents(backbone, options, guided)
    with counting_bar("to noise", "step") as show:
        text = encode(backbone, ParsedPrompt(options.source))
        picture = invert_picture(backbone, text, latents, options.steps, options.corrections, show)
    with counting_bar("back", "step") as show:
        pictures, warnings = weave(backbone, bank, options.prompt, template_of(backbone, picture, how), config, regions, show)
    warn(warnings)
    options.out.mkdir(parents=True, exist_ok=True)
    print(write_painted(backbone.decode_latent(latents)[0], options.out, "template", options.source, options.seed))
    print(write_painted(pictures[0], options.out, "woven", options.prompt, options.seed))


def template_latents(backbone: Any, options: argparse.Namespace, guided: Any) -> Any:
    """The latents ``[1, C, h, w]`` of the picture that was given, in the shape nearest to its own that the base paints well, or of what the
    base paints of its text.
    """
    import random

    import numpy as np
    import torch

    from ..painting.compose import ConceptMix
    from ..painting.composition import Composition
    from ..painting.paint import paint_latents, unit_noise
    from ..training.crops import fit

    size = options.size or backbone.size
    if options.image is None:
        noise = unit_noise(backbone.family, options.seed, 1, size, size)
        return paint_latents(backbone, Composition(ConceptMix(options.source), ()), noise, guided)
    pixels = torch.from_numpy(np.array(read_image(options.image))).permute(2, 0, 1).float() / 255
    picture, _ = fit(pixels, None, "buckets", size, random.Random(0), backbone.family.cell)
    return backbone.encode_image(picture[None].to(backbone.device) * 2 - 1)


def read_image(file: Path) -> Any:
    """A picture in RGB. Raises ``ValueError`` that names the file and says why it cannot be read."""
    from ..bank.picture_file import in_colours, open_picture

    try:
        return in_colours(open_picture(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
