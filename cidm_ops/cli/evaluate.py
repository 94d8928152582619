"""`cidm evaluate`: a bank's concepts painted in every prompt, scored against their references, and reported."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..painting.config import MODES
from ..text_file import read_text
from .arguments import add_model_and_bank, whole
from .model import load_base
from .progress import counting_bar, warn

if TYPE_CHECKING:
    from ..bank.bank import Bank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_and_bank(parser)
    everywhere = "; NAME,NAME=PLACE for some concepts; may be repeated (default: Doodle's own)"
    parser.add_argument(
        "--prompts", action="append", default=[], metavar="FILE", help=f"one prompt a line, <TOK> for the concept{everywhere}"
    )
    parser.add_argument(
        "--references", action="append", default=[], metavar="FOLDER", help=f"a folder for each concept, of its name{everywhere}"
    )
    parser.add_argument("--concepts", nargs="+", help="which of the bank's (default: all)")
    parser.add_argument(
        "--vision", default="doodle", help="image tower: 'doodle', a transformers folder, a .safetensors of CLIP (default: %(default)s)"
    )
    parser.add_argument(
        "--judge",
        help="a judge of parts, for identity by parts of Doodle's own concepts: 'doodle', or a file of `cidm doodle train` (default: none)",
    )
    parser.add_argument("--samples", type=whole(1), default=50, help="pictures of each prompt (default: %(default)s)")
    parser.add_argument("--steps", type=whole(1), default=50, help="sampling steps (default: %(default)s)")
    parser.add_argument(
        "--guidance", type=float, help="classifier-free guidance (default: 7.5, of Doodle 2, on transformers what suits the base)"
    )
    parser.add_argument("--negative", default="", help="what the pictures should not be; <name> stands for a concept there too")
    parser.add_argument("--mode", choices=MODES, default=MODES[0], help="of the weights (default: %(default)s)")
    parser.add_argument("--strength", type=float, default=1.0, help="of the concepts (default: %(default)s)")
    parser.add_argument("--batch", type=whole(1), default=4, help="pictures painted together (default: %(default)s)")
    parser.add_argument(
        "--earlier", type=Path, nargs="+", default=[], help="folders of evaluations after earlier tasks, in order: forgetting"
    )
    parser.add_argument("--fisher", type=Path, help="a file of 'group: prompt' lines: latent Fisher divergence by group")
    parser.add_argument("--note", default="", help="a line on what the figures mean, for the table and the report")
    parser.add_argument("--out", type=Path, required=True, help="folder of samples, scores and report; what is there is not made again")


@dataclass(frozen=True)
class Prepared:
    """Everything that an evaluation takes, before anything is painted; the folder is claimed for it."""

    bank: "Bank"
    earlier: list[Any]
    tasks: list[Any]
    tower: Any
    judge: Any
    with_parts: list[Any]
    backbone: Any
    sampling: Any
    seeds: range


def run(options: argparse.Namespace) -> None:
    """Paints what is missing, embeds what was not seen before, writes the report and prints the table."""
    finish(options, prepare(options, transformers=True))


def prepare(options: argparse.Namespace, transformers: bool = False) -> Prepared:
    """Reads and loads what an evaluation takes, the base of ``transformers`` too. Raises ``ValueError`` where it cannot be, before anything
    is painted.
    """
    from ..bank.bank import Bank
    from ..engines.parts import load_judge
    from ..engines.towers import load_tower
    from ..evaluation.protocol import claim
    from ..measure.forgetting import scores_of

    bank = Bank(options.bank)
    earlier = [(folder.name, scores_of(folder)) for folder in options.earlier]
    bank.read(options.negative)
    tasks = tasks_of(options, bank)
    tower = load_tower(options.vision)
    with_parts = tasks_with_parts(options, tasks) if options.judge else []
    judge = load_judge(options.judge) if options.judge else None
    backbone = load_base(options, on_cuda="float16", transformers=transformers)
    if options.fisher and not backbone.family.layerwise:
        raise ValueError(f"--fisher compares what layers read, and all layers of {backbone.family.title} read one text: leave it out")
    sampling = sampling_of(options, backbone)
    seeds = range(sampling.seed, sampling.seed + options.samples)
    claim(options.out, backbone, sampling, bank, [task.name for task in tasks])
    return Prepared(bank, earlier, tasks, tower, judge, with_parts, backbone, sampling, seeds)


def finish(options: argparse.Namespace, ready: Prepared) -> None:
    """Does what is not there yet of an evaluation, writes the report and prints the table."""
    from ..evaluation.protocol import embed_task, missing, paint_missing
    from ..evaluation.results import Report, doubts, table, write

    bank, tasks, backbone, sampling, seeds = ready.bank, ready.tasks, ready.backbone, ready.sampling, ready.seeds
    with counting_bar("painting", "picture") as show:
        painted = paint_missing(options.out, backbone, bank, missing(options.out, tasks, seeds, options.batch), sampling, show)
    print(f"painted {painted} of {sum(len(t.prompts) for t in tasks) * len(seeds)} pictures", file=sys.stderr)
    seen = {}
    for task in tasks:
        with counting_bar(f"embedding <{task.name}>", "picture") as show:
            seen[task.name] = embed_task(options.out, ready.tower, task, seeds, show)
    more = [fisher(options, backbone, bank)] if options.fisher else []
    parts = parts_of(options.out, ready.judge, ready.with_parts, seeds)
    about = {"base": str(options.base), "bank": bank.folder.name, "vision": options.vision, "samples_per_prompt": options.samples}
    found = write(options.out, tasks, seen, seeds, Report(about | vars(sampling), more, options.note, parts), ready.earlier)
    print(table(found))
    apart = found["references_told_apart"]
    print(f"The image tower tells references of one concept from another's with an area under the curve of {apart:.3f} (0.5 is chance).")
    if doubt := doubts(found, options.note):
        print(doubt)
    print(options.out / "report.html")


def tasks_with_parts(options: argparse.Namespace, tasks: list[Any]) -> list[Any]:
    """The tasks whose pictures a judge of parts can read: things of Doodle's own, by its references, in flat pictures.

    Raises ``ValueError`` where there are none.
    """
    from ..evaluation.parts import is_flat, judged

    folders = by_name(options.references, [task.name for task in tasks])
    own = [task for task in tasks if folders.get(task.name, "doodle") == "doodle" and judged(task.name)]
    if found := [task for task in own if any(map(is_flat, task.prompts))]:
        return found
    names = ", ".join(task.name for task in tasks)
    raise ValueError(
        f"--judge reads the parts of Doodle's own things in flat pictures, and the prompts of {names} ask for none: leave it out"
    )


def parts_of(folder: Path, judge: Any, tasks: list[Any], seeds: range) -> dict[str, Any]:
    """Identity by parts of the concepts of ``tasks``, read off the pictures on disk."""
    from ..evaluation.parts import score_flat
    from ..evaluation.protocol import read_sample, sample_file

    scores = {}
    for task in tasks:

        def samples(prompt: str, name: str = task.name) -> list[Any]:
            return [read_sample(sample_file(folder, name, prompt, seed)) for seed in seeds]

        scores[task.name] = score_flat(judge, task.name, task.prompts, samples)
    return scores


def sampling_of(options: argparse.Namespace, backbone: Any) -> Any:
    """How the pictures of this evaluation are painted."""
    from ..evaluation.protocol import SampleSettings, usual_guidance

    return SampleSettings(
        size=options.size or backbone.size,
        steps=options.steps,
        guidance=usual_guidance(backbone.family) if options.guidance is None else options.guidance,
        negative=options.negative,
        mode=options.mode,
        strength=options.strength,
        seed=options.seed,
    )


def tasks_of(options: argparse.Namespace, bank: "Bank") -> list[Any]:
    """The concepts to evaluate with their prompts and references, before anything is painted."""
    from ..evaluation.protocol import EvaluationTask, doodle_prompts, doodle_references, read_prompts, references_in

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
            pictures, remarks = references_in(own if own.is_dir() or f"{name}={place}" not in options.references else Path(place))
            warn(remarks)
        tasks.append(EvaluationTask(name, bank.headers[name]["class_word"], lines, pictures))
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


def fisher(options: argparse.Namespace, backbone: Any, bank: "Bank") -> Any:
    """The section on what the concepts do to prompts, by group."""
    from ..evaluation.fisher import by_group
    from ..measure.fisher import read_groups
    from ..measure.sections import divergence_section

    groups = read_groups(read_text(options.fisher))
    return divergence_section(*by_group(backbone, bank, groups, replace(sampling_of(options, backbone), guidance=5.0, seed=0)))
