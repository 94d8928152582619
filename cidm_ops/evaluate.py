"""`cidm evaluate`: a bank's concepts painted in every prompt, scored against their references, and reported."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .bank.bank import Bank

GUIDANCE = {"doodle": 2.0}  # Doodle's world is simple; others as in the paper


def evaluate(options: argparse.Namespace, backbone_of: Callable[..., Any]) -> None:
    """Paint what is missing, look at what was not seen, write the report, print the table."""
    from .engines.towers import load_tower
    from .measure.evaluated import table, write
    from .measure.evaluation import Sampling, claim, look, paint_missing
    from .measure.forgetting import scores_of

    bank = Bank(options.bank)
    earlier = [(folder.name, scores_of(folder)) for folder in options.earlier]
    tasks = tasks_of(options, bank)
    tower = load_tower(options.vision)
    backbone = backbone_of(options, on_cuda="float16")
    sampling = Sampling(
        size=options.size or backbone.size,
        steps=options.steps,
        guidance=GUIDANCE.get(options.base, 7.5) if options.guidance is None else options.guidance,
        negative=options.negative,
        mode=options.mode,
        strength=options.strength,
        seed=options.seed,
    )
    seeds = range(sampling.seed, sampling.seed + options.samples)
    names = [task.name for task in tasks]
    claim(options.out, backbone, sampling, bank, names)
    painted = paint_missing(options.out, backbone, bank, tasks, sampling, seeds, options.batch, progress)
    print(f"painted {painted} of {sum(len(t.prompts) for t in tasks) * len(seeds)} pictures", file=sys.stderr)
    seen = {}
    for task in tasks:
        seen[task.name] = look(options.out, tower, task, seeds, lambda n: print(f"embedded {n} of <{task.name}>", file=sys.stderr))  # noqa: B023
    more = [fisher(options, backbone, bank)] if options.fisher else []
    about = {"base": str(options.base), "bank": bank.folder.name, "vision": options.vision, "samples_per_prompt": options.samples}
    found = write(options.out, tasks, seen, seeds, about | vars(sampling), earlier, more, options.note)
    print(table(found))
    apart = found["references_told_apart"]
    print(f"The image tower tells references of one concept from another's with an area under the curve of {apart:.3f} (0.5 is chance).")
    for line in (options.out / "table.txt").read_text(encoding="utf-8").splitlines()[len(table(found).splitlines()) :]:
        if line:
            print(line)
    print(options.out / "report.html")


def tasks_of(options: argparse.Namespace, bank: Bank) -> list[Any]:
    """The concepts to evaluate with their prompts and references, before anything is painted."""
    from .measure.evaluation import Task, doodle_prompts, doodle_references, read_prompts, references_in

    names = options.concepts or bank.names
    if not names:
        raise ValueError(f"bank {bank.folder.name!r} has no concepts: learn one first")
    for name in names:
        bank.get(name)
    prompts, folders = by_name(options.prompts, names), by_name(options.references, names)
    tasks = []
    for name in names:
        lines = read_prompts(Path(prompts[name])) if prompts.get(name, "doodle") != "doodle" else doodle_prompts(name)
        place = folders.get(name, "doodle")
        if place == "doodle":
            pictures = doodle_references(name)
        else:
            own = Path(place) / name
            pictures = references_in(own if own.is_dir() or f"{name}={place}" not in options.references else Path(place))
        tasks.append(Task(name, bank.headers[name]["class_word"], lines, pictures))
    return tasks


def by_name(given: list[str], names: list[str]) -> Mapping[str, str]:
    """``PLACE`` for all concepts, ``NAME,NAME=PLACE`` for some. Raises ``ValueError`` for a name that is not evaluated."""
    found: dict[str, str] = {}
    for entry in sorted(given, key=lambda e: "=" in e):
        chosen, equals, place = entry.rpartition("=")
        some = [n.strip() for n in chosen.split(",")] if equals else names
        if unknown := set(some) - set(names):
            raise ValueError(f"{entry!r} names {', '.join(sorted(unknown))}: evaluated are {', '.join(names)}")
        found |= dict.fromkeys(some, place)
    return found


def fisher(options: argparse.Namespace, backbone: Any, bank: Bank) -> Any:
    """The section on what the concepts do to prompts, by group."""
    from .measure.fisher import by_group, read_groups
    from .measure.sections import divergence_section

    groups = read_groups(options.fisher.read_text(encoding="utf-8"))
    size = options.size or backbone.size
    found, levels = by_group(backbone, bank, groups, size, mode=options.mode, strength=options.strength, steps=options.steps)
    return divergence_section(found, levels)


def progress(done: int, count: int) -> None:
    if done == count or done % max(1, count // 20) == 0:
        print(f"picture {done}/{count}", file=sys.stderr, flush=True)


def add_command(command: Callable[..., argparse.ArgumentParser], run: Any, base: argparse.ArgumentParser, whole: Any) -> None:
    """The arguments of `cidm evaluate`."""
    show = command("evaluate", run, "paint every concept in every prompt, score the pictures, write a report", parents=[base])
    everywhere = "; NAME,NAME=PLACE for some concepts; may be repeated (default: Doodle's own)"
    show.add_argument(
        "--prompts", action="append", default=[], metavar="FILE", help=f"one prompt a line, <TOK> for the concept{everywhere}"
    )
    show.add_argument(
        "--references", action="append", default=[], metavar="FOLDER", help=f"a folder for each concept, of its name{everywhere}"
    )
    show.add_argument("--concepts", nargs="+", help="which of the bank's (default: all)")
    show.add_argument(
        "--vision", default="doodle", help="image tower: 'doodle', a transformers folder, a .safetensors of CLIP (default: %(default)s)"
    )
    show.add_argument("--samples", type=whole(1), default=50, help="pictures of each prompt (default: %(default)s)")
    show.add_argument("--steps", type=whole(1), default=50, help="sampling steps (default: %(default)s)")
    show.add_argument("--guidance", type=float, help="classifier-free guidance (default: 7.5, of Doodle 2)")
    show.add_argument("--negative", default="", help="what the pictures should not be")
    show.add_argument(
        "--mode", choices=("exact", "released", "paper", "soft"), default="exact", help="of the weights (default: %(default)s)"
    )
    show.add_argument("--strength", type=float, default=1.0, help="of the concepts (default: %(default)s)")
    show.add_argument("--batch", type=whole(1), default=4, help="pictures painted together (default: %(default)s)")
    show.add_argument(
        "--earlier", type=Path, nargs="+", default=[], help="folders of evaluations after earlier tasks, in order: forgetting"
    )
    show.add_argument("--fisher", type=Path, help="a file of 'group: prompt' lines: latent Fisher divergence by group")
    show.add_argument("--note", default="", help="a line on what the figures mean, for the table and the report")
    show.add_argument("--out", type=Path, required=True, help="folder of samples, scores and report; what is there is not made again")
