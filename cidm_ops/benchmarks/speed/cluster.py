"""What a Ray cluster gives and costs on one machine: two workers of one thread beside one process of two threads, and the engine itself.

The same Doodle concepts are learned on every side, each time into a bank of its own, in turns. Only the learning is timed: workers have
begun before. ``speedup`` is tasks an hour with two workers by those with one process; ``overhead`` is the share of a task that one worker
of one thread takes longer than the same loop in this process.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ...cluster.board import ASIDE, Board
from ...cluster.pool import Pool, connected
from ...cluster.tasks import Line
from ...cluster.train import FolderBank, Wave
from ...cluster.versions import versions_here
from ...cluster.worker import Answer, Piece, Terms, Worker
from ...doodle.concepts import CONCEPTS, examples
from .timing import figures, interleave, machine, ratio

NEEDS = (0.5, 0.0, 0.0)  # three workers are there at once, of which at most two work; each has one thread
Work = Callable[[Sequence[Piece]], Iterable[tuple[Piece, Answer]]]


def run(tasks: int = 4, steps: int = 40, rounds: int = 3) -> dict[str, Any]:
    """Measure all sides; ``<side>_seconds`` is for all tasks of a round."""
    with tempfile.TemporaryDirectory() as room, connected(None):
        root, numbers = Path(room), count()
        lines = lines_in(root, tasks, steps)
        terms = Terms("doodle", versions=versions_here())
        one, two = (Pool(terms, most, 1) for most in (1, 2))
        here = Worker(terms)
        here.ready()

        def side(work: Work, threads: int = 1) -> Callable[[], None]:
            def call() -> None:
                torch.set_num_threads(threads)
                learn_all(work, lines, root / f"bank{next(numbers)}")

            return call

        sides = {
            "one_process_two_threads": side(lambda pieces: in_turn(here, pieces), 2),
            "two_workers": side(two.work),
            "one_process": side(lambda pieces: in_turn(here, pieces)),
            "one_worker": side(one.work),
        }
        threads = torch.get_num_threads()
        try:
            times = interleave(sides, rounds)
        finally:
            torch.set_num_threads(threads)
            one.close()
            two.close()
    found: dict[str, Any] = figures(times)
    found["speedup"] = ratio(times, "one_process_two_threads", "two_workers")
    found["overhead"] = round(ratio(times, "one_worker", "one_process") - 1, 4)
    found["tasks_per_hour"] = round(3600 * tasks / found["two_workers_seconds"], 1)
    return found | {"tasks": tasks, "steps": steps} | machine()


def lines_in(root: Path, tasks: int, steps: int) -> list[Line]:
    """Returns tasks for Doodle's first concepts, whose pictures are written below ``root``."""
    lines = []
    for number, concept in enumerate(list(CONCEPTS.values())[:tasks], 1):
        folder = root / concept.name
        folder.mkdir()
        for i, shown in enumerate(examples(concept, 6)):
            Image.fromarray(shown.picture).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(shown.caption, encoding="utf-8")
        lines.append(Line(number=number, images=str(folder), class_word=concept.class_word, name=concept.name, steps=steps))
    return lines


def learn_all(work: Work, lines: Sequence[Line], folder: Path) -> None:
    """Learns all lines as one wave into a new bank. Raises ``ValueError`` if one was set aside."""
    board = Board([line.name for line in lines])
    wave = Wave(lines, str(folder), FolderBank(folder), board, [])
    for piece, answer in work(wave.pieces(NEEDS)):
        wave.take(piece, answer)
    wave.write()
    if aside := {name: row.reason for name, row in board.rows.items() if row.state == ASIDE}:
        raise ValueError(f"the benchmark could not learn {aside}")


def in_turn(worker: Worker, pieces: Sequence[Piece]) -> Iterable[tuple[Piece, Answer]]:
    """Gives each piece with the answer of a worker in this process."""
    for piece in pieces:
        yield piece, worker.do(piece.what, *piece.arguments)
