"""Pictures and scores by pieces on a Ray cluster, into the folder in which the command of a single machine then finds all of it done.

The pieces are those that one machine would do: what is painted together there is painted together here, so that the files are the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..benchmarks.quality.methods import Method
from ..benchmarks.quality.protocol import MODELESS, asked
from ..benchmarks.quality.wanted import Wanted
from ..evaluation.protocol import EvaluationTask, SampleSettings, sample_file
from .board import ASIDE, LEARNED, Board
from .train import How
from .worker import DONE, Piece, Terms


def pieces_of_pictures(
    out: Path, tasks: Sequence[EvaluationTask], seeds: Sequence[int], batch: int, sampling: SampleSettings
) -> Iterator[Piece]:
    """Gives a piece for each group of at most ``batch`` pictures of a prompt, as one machine paints them together, if any of it
    is missing.
    """
    for task in tasks:
        bare = replace(task, references=())
        for number, template in enumerate(task.prompts):
            for first in range(0, len(seeds), batch):
                group = list(seeds[first : first + batch])
                if not all(sample_file(out, task.name, template, seed).exists() for seed in group):
                    name = f"{task.name} {number + 1}, {group[0]} to {group[-1]}"
                    yield Piece(name, "paint", (out, bare, template, group, sampling))


def pieces_of_towers(out: Path, vision: str, tasks: Sequence[EvaluationTask], seeds: Sequence[int]) -> Iterator[Piece]:
    """Gives a piece for the pictures of each concept, which a tower looks at."""
    for task in tasks:
        yield Piece(f"{task.name}, {vision}", "embed", (out, vision, task, seeds))


def pieces_of_lessons(wanted: Wanted, methods: Mapping[str, Method], seeds: Sequence[int]) -> Iterator[Piece]:
    """Gives a piece for each sequence of concepts that the methods learn."""
    trainings = dict.fromkeys(method.training for method in methods.values() if method.merge not in MODELESS)
    for seed in seeds:
        for training in trainings:
            yield Piece(f"learn {training}, seed {seed}", "sequence", (wanted, training, seed))


def pieces_of_scores(wanted: Wanted, methods: Mapping[str, Method], seeds: Sequence[int], curves: Sequence[int]) -> Iterator[Piece]:
    """Gives a piece for each score of a benchmark."""
    for one in asked(methods, seeds, curves):
        name = f"{one.name}, seed {one.seed}, {'first' if one.first else 'last'}, {one.strength:g}"
        yield Piece(name, "scores", (wanted, one, methods[one.name]))


def do_all(phases: Sequence[Sequence[Piece]], terms: Terms, how: How, board: Board) -> None:
    """Does the pieces of one phase after those of another. Raises ``ValueError`` naming pieces that were set aside, before the next phase,
    and what ``learn_all`` does.
    """
    from .pool import Pool, connected, room_for, settled

    with connected(how.address):
        needs = settled(how.needs)
        most = how.workers or min(room_for(needs), max(map(len, phases), default=1))
        pool = Pool(terms, max(1, most), how.tries)
        pool.changed = lambda: board.watch(pool.running)
        try:
            for phase in phases:
                for piece, answer in pool.work([replace(piece, needs=needs) for piece in phase]):
                    board.end(piece.name, LEARNED if answer.kind == DONE else ASIDE, answer.reason)
                if aside := board.aside:
                    said = "; ".join(f"{name}: {reason}" for name, reason in list(aside.items())[:5])
                    raise ValueError(f"{len(aside)} pieces were set aside, the others are done: {said}")
        finally:
            pool.close()


def board_of(phases: Sequence[Sequence[Piece]], told: Any = lambda name: None) -> Board:
    """Returns the board of all pieces."""
    return Board([piece.name for phase in phases for piece in phase], told)
