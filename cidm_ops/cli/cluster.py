"""`cidm cluster …`: many concepts, pictures and scores on the machines of a Ray cluster. Arguments and calls."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bank.files import write_atomically
from ..printable import one_line
from ..text_file import read_text
from . import benchmark
from . import evaluate as one_machine
from .arguments import add_model, whole
from .model import load_base
from .progress import warn

if TYPE_CHECKING:
    from ..cluster.board import Board
    from ..cluster.tasks import Line
    from ..cluster.train import How
    from ..cluster.worker import Terms

Options = argparse.Namespace
LARGEST = 2**28  # bytes of a file of tasks
INPUTS = {  # of the calculation: `cluster.scale.Inputs` has what they are by default
    "learn": "seconds that a concept takes to learn",
    "file": "MB of a concept's file",
    "index": "KB of a concept in the index",
    "open": "microseconds that each concept of a bank costs when it is opened",
    "add": "microseconds that each concept of a bank costs when others are added",
    "rank": "rank of the factors",
    "disk": "MB a second of the shared store",
    "memory": "GB of memory of a worker",
    "price": "of an hour of a GPU",
}
AGAIN = 0.5  # seconds between two writings of the JSON


def amount(least: float) -> Callable[[str], float]:
    """Makes an argument type: a number of at least ``least``."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least {least:g}")
        return value

    return number


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Adds where the cluster is, and what a worker asks of a machine."""
    parser.add_argument("--address", help="of a Ray cluster (default: $RAY_ADDRESS, else this machine alone)")
    parser.add_argument("--workers", type=whole(1), default=0, help="at most so many at once (default: as many as there is room for)")
    parser.add_argument("--cpus", type=amount(0.01), default=1.0, help="cores of a worker, which are its threads (default: %(default)g)")
    parser.add_argument("--gpus", type=amount(0), help="GPUs of a worker, also a part of one (default: 1 where the cluster has any)")
    parser.add_argument("--memory", type=amount(0), default=0.0, help="GB of memory of a worker; 0: not asked for (default: %(default)g)")
    parser.add_argument("--tries", type=whole(1), default=3, help="of a piece of work before it is set aside (default: %(default)s)")
    parser.add_argument("--progress", type=Path, metavar="JSON", help="write how far everything is into this file, again and again")


def place(text: str) -> Any:
    """An argument type: a folder, or an address as it stands."""
    return text if "://" in text else Path(text)


def train(options: Options) -> None:
    """Learns every concept of a file of tasks that the bank does not have yet."""
    from ..cluster.board import Board
    from ..cluster.tasks import is_address
    from ..cluster.train import learn_all

    lines = lines_of(options)
    terms = replace(
        terms_of(options), seed=options.seed, bank=str(options.bank if is_address(str(options.bank)) else options.bank.resolve())
    )
    how = replace(how_of(options), width=options.width)
    board = Board([line.name for line in lines])
    with shown(board, options.progress):
        learn_all(lines, terms, how, board)
    if aside := board.aside:
        numbers = {line.name: line.number for line in lines}
        said = "; ".join(f"<{name}> of line {numbers[name]}: {one_line(reason)}" for name, reason in aside.items())
        raise ValueError(f"{len(aside)} of {len(lines)} tasks were set aside, the others are in the bank: {said}")


def evaluate(options: Options) -> None:
    """Paints and embeds by pieces, then does what `cidm evaluate` does, which finds all of it done."""
    from ..cluster.pictures import board_of, do_all, pieces_of_pictures, pieces_of_towers

    options.out, options.bank = shared(options.out), shared(options.bank)
    options.vision = everywhere(options.vision)
    ready, how = one_machine.prepare(options), how_of(options)
    painting = pieces_of_pictures(options.out, ready.tasks, ready.seeds, options.batch, ready.sampling)
    phases = [list(painting), list(pieces_of_towers(options.out, options.vision, ready.tasks, ready.seeds))]
    board = board_of(phases)
    with shown(board, options.progress):
        do_all(phases, replace(terms_of(options), on_cuda="float16", bank=str(options.bank)), how, board)
    one_machine.finish(options, ready)


def run_benchmark(options: Options) -> None:
    """Learns and scores by pieces, then does what `cidm benchmark` does, which finds all of it done."""
    from ..benchmarks.quality.wanted import methods_named
    from ..cluster.pictures import board_of, do_all, pieces_of_lessons, pieces_of_scores

    options.folder, options.judge = shared(options.folder), options.judge and shared(options.judge)
    options.vision, options.suite = everywhere(options.vision), everywhere(options.suite)
    wanted, methods = benchmark.wanted_of(options), methods_named(options.methods, options.ablations, options.suite)
    wanted.check()
    bench, how = wanted.bench(load_base(options, on_cuda="float16")), how_of(options)
    bench.claim()
    curves = benchmark.curves_of(options)
    learning = list(pieces_of_lessons(wanted, methods, options.seeds))
    phases = [learning, list(pieces_of_scores(wanted, methods, options.seeds, curves))]
    board = board_of(phases)
    with shown(board, options.progress):
        do_all(phases, replace(terms_of(options), on_cuda="float16"), how, board)
    benchmark.finish(options, bench, methods)


def calculate(options: Options) -> None:
    """Prints what banks of some sizes take."""
    from ..cluster.scale import Inputs, record, scale, table

    given = {name: value for name in INPUTS if (value := getattr(options, name)) is not None}
    inputs = Inputs(**given)
    found = [scale(inputs, concepts, options.workers, options.width or 0) for concepts in options.concepts]
    print(table(inputs, found))
    if options.json:
        write_atomically(json.dumps(record(inputs, found), indent=1).encode(), options.json)


def terms_of(options: Options) -> "Terms":
    """What all workers have in common."""
    from ..cluster.versions import versions_here
    from ..cluster.worker import Terms

    return Terms(everywhere(options.base), options.size, options.device, options.dtype, versions=versions_here())


def how_of(options: Options) -> "How":
    """How the work is spread."""
    from ..cluster.train import How

    needs = (options.cpus, options.gpus, options.memory)
    return How(tries=options.tries, workers=options.workers, needs=needs, address=options.address)


def lines_of(options: Options) -> "list[Line]":
    """Reads the file of tasks. Raises ``ValueError`` naming the broken lines, if they are not to be skipped, and if none is left."""
    from ..cluster.tasks import read_tasks
    from ..cluster.worker import check_line

    lines, broken, remarks = read_tasks(read_text(options.tasks, LARGEST), options.tasks.resolve().parent)
    whole_lines = []
    for line in lines:
        try:
            check_line(line)
            whole_lines.append(line)
        except ValueError as error:
            broken[line.number] = str(error)
    warn(remarks)
    told = [f"line {number}: {broken[number]}" for number in sorted(broken)]
    if broken and not options.skip_broken:
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        raise ValueError(f"{options.tasks.name}, {'; '.join(told[:5])}{more}: mend them, or go on without with --skip-broken")
    warn(f"{said}; it is skipped" for said in told)
    if not whole_lines:
        raise ValueError(f"{options.tasks}: no task in it: expected an object a line, such as {{'images': 'rex', 'class_word': 'dog'}}")
    return whole_lines


def everywhere(given: str) -> str:
    """A name or a path as every machine can find it: a path is made whole."""
    return str(Path(given).absolute()) if Path(given).exists() else given


def shared(folder: Path) -> Path:
    """A folder as every machine can find it. Raises ``ValueError`` for an address, where pictures and scores are not written."""
    if ":/" in str(folder):
        raise ValueError(
            f"{folder}: expected a folder that all machines see; only `cidm cluster train` takes banks and pictures at addresses"
        )
    return folder.absolute()


@contextmanager
def shown(board: "Board", file: Path | None) -> Iterator[None]:
    """Show a board while this is open, on a terminal as a table that is drawn again and again, else a line for each task that ends; and
    keep its JSON in ``file``.
    """
    live, drawn, last = sys.stderr.isatty(), 0, 0.0

    def draw(text: str) -> None:
        nonlocal drawn
        back = f"\x1b[{drawn}A\x1b[J" if live and drawn else ""
        print(back + text, file=sys.stderr, flush=True)
        drawn = text.count("\n") + 1

    def keep(always: bool = False) -> None:
        nonlocal last
        if file and (always or time.monotonic() - last > AGAIN):
            write_atomically(json.dumps(board.record(), indent=1).encode(), file)
            last = time.monotonic()

    def told(name: str) -> None:
        row = board.rows[name]
        if not live:
            print(f"<{name}> {row.state}{f': {one_line(row.reason)}' if row.reason else ''}; {board.line()}", file=sys.stderr, flush=True)
        keep()

    def looked(running: Any) -> None:
        watch(running)
        if live:
            draw(board.table())
        keep()

    watch = board.watch
    board.told, board.watch = told, looked  # type: ignore[method-assign]
    try:
        yield
    finally:
        if live:
            draw(board.table())
        keep(always=True)
        print(board.line(), file=sys.stderr, flush=True)


def add_commands(into: Any) -> None:
    """Adds every subcommand."""

    def command(name: str, call: Callable[[Options], None], text: str) -> argparse.ArgumentParser:
        added = into.add_parser(name, help=text, description=text)
        added.set_defaults(run=call)
        return added

    about = "learn the concepts of a file, one JSON object a line, into a bank; the same command again does what is missing"
    many = command("train", train, about)
    many.add_argument("tasks", type=Path, help="the file: a line has images and class_word, and any other option of `cidm train`")
    many.add_argument("--bank", type=place, required=True, help="folder of the concept bank that all machines see, or an address as s3://")
    many.add_argument("--width", type=whole(1), default=1, help="concepts that are learned at once, not kept apart (default: %(default)s)")
    many.add_argument("--skip-broken", action="store_true", help="go on without lines of the file that cannot be")
    add_model(many)
    many.add_argument("--seed", type=whole(0), default=0, help="seed of all that is random (default: %(default)s)")
    add_cluster(many)

    about = "as `cidm evaluate`, with pictures painted and embedded on all machines; the folders have to be seen by all of them"
    scored = command("evaluate", evaluate, about)
    one_machine.add_arguments(scored)
    add_cluster(scored)

    about = "as `cidm benchmark`, with concepts learned and scored on all machines; the folder has to be seen by all of them"
    compared = command("benchmark", run_benchmark, about)
    benchmark.add_arguments(compared)
    add_cluster(compared)

    about = "how far a bank goes: files, index, opening, consolidation, time and cost, and what gives way first, with what mends it"
    far = command("scale", calculate, about)
    far.add_argument("--concepts", type=whole(1), nargs="+", default=[1_000, 10_000, 1_000_000], help="how many (default: %(default)s)")
    far.add_argument("--workers", type=whole(1), default=100, help="GPUs (default: %(default)s)")
    far.add_argument("--width", type=whole(1), help="concepts of a wave (default: as many as GPUs)")
    for name, what in INPUTS.items():
        far.add_argument(f"--{name}", type=whole(1) if name == "rank" else amount(0), help=f"{what} (default: see the first line)")
    far.add_argument("--json", type=Path, help="write inputs and results here too")
