"""Many concepts into one bank on a Ray cluster, in waves: each wave learns against the bank as it was when the wave began.

Workers learn, and this process alone writes into the bank, in the order of the file: so the same file and the same width give the same
bank, whoever is faster and whoever dies.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bank.bank import Bank
from ..bank.lock import writing
from ..training.checkpoint import checkpoint_file
from ..training.methods import METHODS
from .board import ASIDE, FOUND, LEARNED, Board
from .tasks import Line, Needs, is_address, waves_of
from .worker import DONE, Answer, Piece, Terms

LOCK = ".cluster"
SHARE = 0.1  # of the time that may go into writing while others are still learned


@dataclass(frozen=True)
class How:
    """How a list is worked off: concepts of a wave, tries of a task, workers (0: as many as there is room for), what each asks of its
    machine (cores, GPUs or None, GB of memory), and the address of the cluster.
    """

    width: int = 1
    tries: int = 3
    workers: int = 0
    needs: tuple[float, float | None, float] = (1.0, None, 0.0)
    address: str | None = None


class FolderBank:
    """A bank in a folder that all machines see."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, names: Sequence[str], concepts: Sequence[Any]) -> None:
        """Writes concepts into the bank, and forgets the states of the runs of ``names``. Raises what ``Bank.add`` does."""
        bank = Bank(self.folder)
        if concepts:
            bank = bank.add(*concepts)
        for name in names:
            checkpoint_file(bank, name).unlink(missing_ok=True)


@contextmanager
def held(place: str) -> Iterator[Any]:
    """Keep a second cluster from working on a bank while this is open. Raises ``TimeoutError`` if there is one already."""
    if is_address(place):
        from .store import held_store

        with held_store(place) as store:
            yield store
        return
    with writing(Path(place), wait=0, lock=LOCK):
        yield FolderBank(Path(place))


def learn_all(lines: Sequence[Line], terms: Terms, how: How, board: Board) -> None:
    """Learns everything that the bank of ``terms`` does not have yet. What ends it leaves all tasks where they can go on.

    Raises ``TimeoutError`` if another cluster works on the bank, ``ConnectionError`` without Ray, ``ValueError`` if no worker can begin.
    """
    from .pool import Pool, connected, room_for, settled

    alone = [name for name, method in METHODS.items() if not method.continual]
    waves = waves_of(lines, how.width, alone)
    with held(terms.bank) as bank, connected(how.address):
        needs = settled(how.needs)
        most = how.workers or min(room_for(needs), max(map(len, waves), default=1))
        pool = Pool(terms, most, how.tries)
        pool.changed = lambda: board.watch(pool.running)
        try:
            for wave in waves:
                Wave(wave, terms.bank, bank, board, alone).learn(pool, needs)
        finally:
            pool.close()


class Wave:
    """Lines that are learned at the same time, none of them kept apart from another, into the bank at ``place``, which ``bank`` writes.

    To write takes longer the larger the bank is, and hardly longer for many than for one: so those that are due wait for each other as long
    as writing would take more than ``SHARE`` of the time. Until then the states of their finished runs are kept.
    """

    def __init__(self, lines: Sequence[Line], place: str, bank: Any, board: Board, alone: Sequence[str]):
        self.lines, self.place, self.bank, self.board, self.alone = list(lines), place, bank, board, alone
        self.answers: dict[str, Answer] = {}
        self.next_writing = 0.0

    def pieces(self, common: Needs) -> list[Piece]:
        """Returns the pieces of work; ``common`` is what they ask of a machine where their lines do not say it."""
        return [Piece(line.name, "learn", (self.place, line, self.beside(line)), line.needs(common)) for line in self.lines]

    def beside(self, line: Line) -> list[str]:
        """Returns the names of the others that could have been learned before it."""
        return [] if line.method in self.alone else [other.name for other in self.lines if other.name != line.name]

    def learn(self, pool: Any, needs: Needs) -> None:
        """Learns all by the workers of a ``Pool``, and writes each behind all that are before it in the file."""
        try:
            for piece, answer in pool.work(self.pieces(needs)):
                self.take(piece, answer)
        except KeyboardInterrupt:
            for piece, answer in pool.stop():
                self.take(piece, answer)
            raise
        finally:
            self.write()

    def take(self, piece: Piece, answer: Answer) -> None:
        """Takes an answer, and writes those that are due if it is time for that."""
        self.answers[piece.name] = answer
        if time.monotonic() >= self.next_writing:
            self.write()

    def write(self) -> None:
        """Writes what is due: every line that is done, up to the first one that is not."""
        due: list[Line] = []
        while self.lines and self.lines[0].name in self.answers:
            due.append(self.lines.pop(0))
        if due:
            began = time.monotonic()
            self.settle(due)
            self.next_writing = time.monotonic() + (time.monotonic() - began) * (1 / SHARE - 1)

    def settle(self, due: Sequence[Line]) -> None:
        """Writes what was made of lines into the bank, or sets them aside."""
        for line in due:
            if (answer := self.answers[line.name]).kind != DONE:
                self.board.end(line.name, ASIDE, answer.reason or answer.kind)
        done = [line for line in due if self.answers[line.name].kind == DONE]
        if not done:
            return
        made = {line.name: self.answers[line.name].value for line in done}
        try:
            self.bank.add([*made], [concept for one in made.values() for concept in one.concepts])
        except ValueError as error:  # words are taken, or the bank is for another architecture
            if len(done) == 1:
                self.board.end(done[0].name, ASIDE, str(error))
                return
            for line in done:
                self.settle([line])
            return
        for name, one in made.items():
            self.board.rows[name].step = self.board.rows[name].steps = len(one.losses)
            self.board.end(name, LEARNED if one.concepts else FOUND)
