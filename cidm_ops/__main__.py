"""The command line: `cidm` or `python -m cidm_ops`. Arguments and calls; what can go wrong is one line on stderr and exit code 2."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import bank_commands
from .bank_commands import warn
from .benchmark import add_command as add_benchmark
from .evaluate import add_command as add_evaluate


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 for an input that cannot work."""
    parser = arguments()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command not in (doodle_train, doodle_judge):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        options.command(options, rest)
    except ModuleNotFoundError as error:
        return refuse(f"{error}: install it with pip install 'cidm[headless]'")
    except KeyError as error:
        return refuse(error.args[0])
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        return refuse("stopped; what was finished before is on disk")
    return 0


def refuse(reason: object) -> int:
    print(f"cidm: {' '.join(str(reason).split())}", file=sys.stderr)
    return 2


def demo(options: argparse.Namespace, rest: list[str]) -> None:
    from .demo import run

    logging.basicConfig(format="%(message)s")
    logging.getLogger("cidm").setLevel(logging.INFO)
    run(options.folder)


def train(options: argparse.Namespace, rest: list[str]) -> None:
    from .bank.bank import Bank
    from .run.captions import TEMPLATES
    from .run.folder import from_folder
    from .run.recipe import INFUSION, Recipe
    from .run.task import learn_into

    name = options.name or options.images.resolve().name
    backbone = load_base(options, on_cuda="bfloat16")
    images = from_folder(options.images, options.size or backbone.size, options.fit, options.flip)
    kind = "style" if options.style else "thing"
    if options.method == "infusion":
        recipe = replace(INFUSION, steps=options.steps or INFUSION.steps, seed=options.seed)
    else:
        recipe = Recipe(steps=options.steps or Recipe.steps, rank=options.rank, seed=options.seed, kind=kind, templates=TEMPLATES[kind])
    recipe = recipe.having(options.set)
    bank, _, _ = learn_into(
        Bank(options.bank),
        backbone,
        images,
        name=name,
        class_word=options.class_word,
        recipe=recipe,
        existing=options.existing,
        prior=options.prior and from_folder(options.prior, options.size or backbone.size, options.fit),
        on_step=report,
    )
    warn(images.warnings)
    print(bank.file(name))


def report(run: Any) -> None:
    step, steps = run.step, run.recipe.steps
    if step == steps or step % max(1, steps // 20) == 0:
        print(f"step {step}/{steps}  loss {run.losses[-1]:.4f}", file=sys.stderr, flush=True)


def generate(options: argparse.Namespace, rest: list[str]) -> None:
    from PIL import Image

    from .bank.bank import Bank
    from .painting.compose import AggregationConfig
    from .painting.paint import SamplingConfig, paint, unit_noise
    from .painting.scene import PRESETS, InfusionConfig

    bank, regions = Bank(options.bank), regions_of(options)
    how = AggregationConfig(mode=options.mode, strength=options.strength, scope=options.reach)
    infusion, passes = InfusionConfig(options.stream), PRESETS[options.preset]
    config = SamplingConfig(options.steps, options.guidance, options.negative, how, infusion, passes)
    for prompt in (*options.prompt, *(text for text, _ in regions)):
        bank.read(prompt)
    backbone = load_base(options, on_cuda="float16")
    size = options.size or backbone.size
    options.out.mkdir(parents=True, exist_ok=True)
    for number, prompt in enumerate(options.prompt, 1):
        for seed in range(options.seed, options.seed + options.count):
            pictures, warnings = paint(backbone, bank, prompt, unit_noise(seed, 1, size, size), config, regions)
            warn(warnings)
            pixels = ((pictures[0].permute(1, 2, 0).cpu() + 1) * 127.5).round().byte().numpy()
            words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
            file = options.out / f"{number:02d}-{words}-{seed}.png"
            Image.fromarray(pixels).save(file)
            print(file)


def regions_of(options: argparse.Namespace) -> list[Any]:
    """The prompts and masks of all regions that were asked for."""
    from .method.boxes import read_boxes, read_region

    regions = [read_region(text) for text in options.region]
    return regions + (read_boxes(options.regions.read_text(encoding="utf-8")) if options.regions else [])


def evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    from .evaluate import evaluate as run

    run(options, load_base)


def benchmark(options: argparse.Namespace, rest: list[str]) -> None:
    from .benchmark import benchmark as run

    run(options, load_base)


def doodle_train(options: argparse.Namespace, rest: list[str]) -> None:
    from .doodle.train import main as train_doodle

    train_doodle(rest)


def doodle_judge(options: argparse.Namespace, rest: list[str]) -> None:
    from .measure.base import main as judge_doodle

    judge_doodle(rest)


def bench(options: argparse.Namespace, rest: list[str]) -> None:
    import json

    from .measure.bench import aggregate, consolidation, infusion, modes, regions, routing, scenes, tokens, train

    sides = {
        "aggregate": lambda: aggregate.run(options.comfy),
        "consolidation": lambda: consolidation.run(),
        "infusion": lambda: infusion.run(options.folder or Path("runs/infusion")),
        "modes": lambda: modes.run(options.folder or Path("runs/modes"), options.seeds, options.modes or modes.MODES),
        "regions": lambda: regions.run(options.comfy, options.pixels),
        "routing": lambda: routing.run(options.folder),
        "scenes": lambda: scenes.run(options.comfy, options.folder or Path("runs/scenes"), options.scenes, options.seeds),
        "tokens": lambda: tokens.run(),
        "train": lambda: train.run(options.comfy),
    }
    figures = {"bench": options.name, **sides[options.name]()}
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


def load_base(options: argparse.Namespace, on_cuda: str) -> Any:
    """The backbone, on the fastest device there is unless told; half precision is the default on CUDA only."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from .engines.diffusers import load

    disable_progress_bar()
    fastest = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(options.device or fastest)
    return load(options.base, device, getattr(torch, options.dtype or (on_cuda if device.type == "cuda" else "float32")))


def whole(least: int, multiple: int = 1) -> Any:
    """An argument type: a whole number of at least ``least``, a multiple of ``multiple``."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least or int(text) % multiple:
            of = f", a multiple of {multiple}" if multiple > 1 else ""
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}{of}")
        return int(text)

    return number


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("cidm", description="Learn one concept after another into a bank, and paint them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Any, text: str, into: Any = commands, **options: Any) -> argparse.ArgumentParser:
        added = into.add_parser(name, help=text, description=text, **options)
        added.set_defaults(command=call)
        return added

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument(
        "--base",
        "--model",
        default="doodle",
        help="'doodle', a diffusers folder, or a .safetensors or .ckpt file of Stable Diffusion 1 or SDXL (default: %(default)s)",
    )
    model.add_argument("--size", type=whole(64, 8), help="pixels of a picture's side (default: what the base was made for)")
    model.add_argument("--device", help="torch device (default: the fastest there is)")
    model.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="of the frozen base (default: half on CUDA, else float32)"
    )
    base = argparse.ArgumentParser(add_help=False, parents=[model])
    base.add_argument("--bank", type=Path, required=True, help="folder of the concept bank")
    base.add_argument("--seed", type=whole(0), default=0, help="seed of all that is random (default: %(default)s)")

    show = command("demo", demo, "learn three Doodle concepts, paint and score them, write a report")
    show.add_argument(
        "folder", type=Path, nargs="?", default=Path("demo"), help="where the report, the sheet and the bank go (default: %(default)s)"
    )

    learn = command("train", train, "learn a concept from a folder of pictures into a bank", parents=[base])
    learn.add_argument("--images", type=Path, required=True, help="folder of 4 to 7 pictures, captions in .txt files of the same name")
    learn.add_argument("--class-word", required=True, help="what it is in plain words, such as 'dog' or 'teddy bear'")
    learn.add_argument("--name", help="the concept's name, in prompts <name> (default: the name of the folder)")
    learn.add_argument("--style", action="store_true", help="the concept is a style, not a thing")
    learn.add_argument(
        "--method",
        choices=("cidm", "infusion"),
        default="cidm",
        help="low-rank factors and words, or Infusion's residuals at the class word (default: %(default)s)",
    )
    learn.add_argument("--steps", type=whole(1), help="training steps (default: 800; 500 for infusion)")
    learn.add_argument(
        "--fit",
        choices=("centre", "buckets", "random", "as_given"),
        default="centre",
        help="how pictures of other shapes are fitted (default: %(default)s)",
    )
    learn.add_argument(
        "--prior", type=Path, help="folder of pictures of the plain class, for --set prior=1 (default: the base paints some)"
    )
    learn.add_argument(
        "--existing",
        choices=("replace", "refuse", "continue"),
        default="replace",
        help="if the bank has a concept of that name that was learned in any other way (default: %(default)s)",
    )
    learn.add_argument("--flip", action="store_true", help="mirror every second picture")
    learn.add_argument("--rank", type=whole(1), default=4, help="rank of the factors (default: %(default)s)")

    learn.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of cidm_ops/run/recipe.py, such as min_snr=5 or mode=orthogonal; may be repeated",
    )

    make = command("generate", generate, "paint prompts with the concepts of a bank", parents=[base])
    make.add_argument("--prompt", action="append", required=True, help="may be repeated; <name> stands for a concept")
    make.add_argument("--negative", default="", help="what the pictures should not be")
    make.add_argument(
        "--mode",
        choices=("exact", "released", "paper", "soft"),
        default="exact",
        help="how the concepts' weights are found (default: %(default)s)",
    )
    make.add_argument(
        "--stream",
        choices=("dual", "single", "released_code"),
        default="dual",
        help="where Infusion concepts take their attention maps from: the plain base beside them, or themselves (default: %(default)s)",
    )
    make.add_argument(
        "--reach",
        choices=("by kind", "everywhere", "words and end", "words"),
        default="by kind",
        help="which words of a prompt concepts change: all, their own and the end, or their own; by kind: their own if they are styles "
        "(default: %(default)s)",
    )
    make.add_argument(
        "--region",
        action="append",
        default=[],
        metavar='"LEFT,TOP,RIGHT,BOTTOM: PROMPT"',
        help="a prompt for a part of the picture, edges from 0 to 1, such as '0,0,0.5,1: a <dog> in the snow'; may be repeated",
    )
    make.add_argument("--regions", type=Path, metavar="FILE.json", help="regions as the node Draw Regions writes them")
    make.add_argument(
        "--preset",
        choices=("fast", "paper", "auto"),
        default="fast",
        help="how regions are painted: in one pass, with passes for each in every step, or in the first steps (default: %(default)s)",
    )
    make.add_argument("--strength", type=float, default=1.0, help="of the concepts; 0 is the plain base (default: %(default)s)")
    make.add_argument("--steps", type=whole(1), default=25, help="sampling steps (default: %(default)s)")
    make.add_argument("--guidance", type=float, default=5.0, help="classifier-free guidance (default: %(default)s)")
    make.add_argument("--count", type=whole(1), default=1, help="pictures per prompt, seeds counting up (default: %(default)s)")
    make.add_argument("--out", type=Path, default=Path("."), help="folder for the pictures (default: this one)")

    add_evaluate(command, evaluate, base, whole)
    add_benchmark(command, benchmark, model, whole)

    bank = commands.add_parser("bank", help="look into a concept bank and keep it").add_subparsers(required=True, metavar="COMMAND")
    bank_commands.add_commands(bank, command, whole)

    time = command("bench", bench, "compare sides in one run, in turns, on full-size models with random weights")
    time.add_argument(
        "name",
        choices=("aggregate", "consolidation", "infusion", "modes", "regions", "routing", "scenes", "tokens", "train"),
        help="what concepts cost when painting; what earlier ones cost a training step; what a concept with one background "
        "does to everything else, by Infusion and by weights; what each consolidation mode does to ten Doodle concepts; what "
        "regions cost; where the weights of a prompt go; whether several concepts stand each in its place; what layer-wise "
        "words cost; our trainer and ComfyUI's own",
    )
    time.add_argument("--json", type=Path, help="write the figures here too")
    time.add_argument(
        "--folder",
        type=Path,
        help="for infusion, modes and scenes: keeps what is done (default: runs/NAME); for routing: a bank (default: Doodle's)",
    )
    time.add_argument("--seeds", type=whole(1), default=3, help="for modes and scenes (default: %(default)s)")
    time.add_argument("--scenes", type=whole(3), default=200, help="for scenes (default: %(default)s)")
    time.add_argument("--pixels", type=whole(64, 64), help="for regions: the picture's side (default: 512 with a GPU, 256 without)")
    time.add_argument("--modes", nargs="+", help="for modes: which of them, and in which order")
    time.add_argument(
        "--comfy",
        type=Path,
        default=Path("~/comfy/ComfyUI"),
        help="for aggregate, regions, scenes and train: a ComfyUI checkout (default: %(default)s)",
    )

    doodle = commands.add_parser("doodle", help="the model that ships with the pack").add_subparsers(required=True, metavar="COMMAND")
    command("train", doodle_train, "train Doodle from scratch; see its own --help", doodle, add_help=False)
    command("judge", doodle_judge, "measure how well Doodle obeys captions; see its own --help", doodle, add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
