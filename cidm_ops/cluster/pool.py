"""Pieces of work on the workers of a Ray cluster: Ray has the machines, the queue for their room, the processes and the way back of what
they made; here is which piece goes to whom, and what becomes of one whose worker dies.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ..printable import one_line
from ..training.stops import keep_handlers
from .tasks import Needs
from .worker import DONE, HERE, REFUSED, Answer, Piece, Terms, Worker

LOOK = 0.5  # seconds between two looks at what everybody does
GIVE_UP = 30.0  # seconds that workers have to keep their state when all is stopped
GB = 2**30


@dataclass
class Hand:
    """A worker as this side sees it. ``ref`` is what it was asked last: to get ready, or the ``piece`` that it is at."""

    actor: Any
    needs: Needs
    ref: Any
    machine: str = ""
    process: int = 0
    piece: Piece | None = None
    look: Any = None
    progress: tuple[int, int] = (0, 0)

    @property
    def idle(self) -> bool:
        return bool(self.machine) and self.piece is None


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Join the Ray cluster at an address while this is open; without one that of ``RAY_ADDRESS``, or one of this machine alone, which ends
    with this. Raises ``ConnectionError`` where there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    check_there(address or os.environ.get("RAY_ADDRESS", ""))
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if not address and not os.environ.get("RAY_ADDRESS"):
        options["include_dashboard"] = False
        os.environ.setdefault("RAY_worker_niceness", "0")  # workers of this machine alone count as this process does
    try:
        with keep_handlers():  # Ray takes some of them, and Ctrl-C is ours to answer
            ray.init(**options)
    except (ConnectionError, RuntimeError, TimeoutError, RayError) as error:
        raise unreachable(address or "this machine", error) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_there(address: str) -> None:
    """Raises ``ConnectionError`` if nothing answers at an address of the form ``host:port``: Ray would ask for a minute and more."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise unreachable(address, error) from error


def unreachable(address: str, error: Exception) -> ConnectionError:
    return ConnectionError(f"Ray cannot be reached at {address} ({one_line(error)[:200]}): start it there with `ray start --head`")


def settled(needs: tuple[float, float | None, float]) -> Needs:
    """Returns what a worker asks for where no number of GPUs was given: one, if the cluster has any. Ray hides all others from it."""
    cpus, gpus, memory = needs
    return cpus, float("GPU" in ray.cluster_resources()) if gpus is None else gpus, memory


def room_for(needs: Needs) -> int:
    """Returns how many workers the cluster has room for at once, at least one."""
    have = ray.cluster_resources()
    cpus, gpus, memory = needs
    asked = {"CPU": cpus, "GPU": gpus, "memory": memory * GB}
    return max(1, int(min((have.get(kind, 0.0) / amount for kind, amount in asked.items() if amount), default=1)))


class Pool:
    """At most ``most`` workers on ``terms``. ``work`` does pieces; ``changed`` is called after whatever happened, and from time to time.

    A worker that dies is replaced, and its piece goes to the next one that is free; a piece that failed ``tries`` times without having come
    further is set aside. What failed for a reason of one machine goes to another if there is one.
    """

    def __init__(self, terms: Terms, most: int, tries: int, changed: Callable[[], None] = lambda: None):
        self.terms, self.most, self.tries, self.changed = terms, most, tries, changed
        self.hands: list[Hand] = []
        self.waiting: deque[Piece] = deque()
        self.unfit: list[str] = []  # why workers could not begin, since one could

    @property
    def running(self) -> list[Hand]:
        return [hand for hand in self.hands if hand.piece]

    def work(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Answer]]:
        """Does all pieces, and gives each with its answer when it has one: done, or refused with a reason. Raises ``ValueError`` if no
        worker can begin.
        """
        self.waiting.extend(pieces)
        while self.waiting or self.running:
            self.assign()
            ready, _ = ray.wait([hand.ref for hand in self.hands if not hand.idle], num_returns=1, timeout=LOOK)
            for hand in [hand for hand in self.hands if hand.ref in ready and not hand.idle]:
                if hand.piece is None:
                    self.welcome(hand)
                elif ended := self.ended(hand):
                    yield ended
            self.look()
            self.changed()

    def assign(self) -> None:
        """Gives waiting pieces to idle workers, and makes workers where there are too few."""
        for piece in list(self.waiting):
            if not any(hand.idle for hand in self.hands):
                break
            able = [hand for hand in self.hands if hand.needs == piece.needs]
            idle = [hand for hand in able if hand.idle]
            if elsewhere := [hand for hand in able if hand.machine not in piece.failed_on]:
                idle = [hand for hand in idle if hand in elsewhere]
            if idle:
                self.give(piece, idle[0])
        starting = sum(not hand.machine for hand in self.hands)
        for piece in list(self.waiting)[starting:]:
            if len(self.hands) >= self.most:
                useless = next((hand for hand in self.hands if hand.idle and not self.wanted(hand)), None)
                if useless is None:
                    return
                self.dismiss(useless)
            self.hands.append(self.hire(piece.needs))

    def wanted(self, hand: Hand) -> bool:
        return any(piece.needs == hand.needs for piece in self.waiting)

    def hire(self, needs: Needs) -> Hand:
        cpus, gpus, memory = needs
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0}
        if memory:
            options["memory"] = int(memory * GB)
        remote: Any = ray.remote
        actor = remote(concurrency_groups={"look": 1})(Worker).options(**options).remote(self.terms)
        return Hand(actor, needs, actor.ready.remote())

    def dismiss(self, hand: Hand) -> None:
        self.hands.remove(hand)
        with suppress(RayError):
            ray.kill(hand.actor)

    def give(self, piece: Piece, hand: Hand) -> None:
        self.waiting.remove(piece)
        hand.piece, hand.look, hand.progress = piece, None, (0, 0)
        hand.ref = hand.actor.do.remote(piece.what, *piece.arguments)

    def welcome(self, hand: Hand) -> None:
        """Takes in a worker that has begun, or notes why it could not: there is one less then. Raises ``ValueError`` if none is left after
        some tries.
        """
        try:
            hand.machine, hand.process = ray.get(hand.ref)
            self.unfit.clear()
            return
        except RayTaskError as error:  # what `ready` raised: this machine will not do
            self.unfit.append(one_line(error.cause or error))
            self.most = max(1, self.most - 1)
        except RayActorError as error:
            self.unfit.append(died(error))
        self.dismiss(hand)
        if not self.hands and len(self.unfit) >= self.tries:
            raise ValueError(f"no worker could begin: {'; '.join(dict.fromkeys(self.unfit))}")

    def ended(self, hand: Hand) -> tuple[Piece, Answer] | None:
        """Returns the piece of a worker with its answer, or puts it back to be tried again."""
        piece, hand.piece = hand.piece, None
        assert piece is not None
        try:
            answer: Answer = ray.get(hand.ref)
        except RayTaskError as error:
            answer = Answer(HERE, reason=one_line(error.cause or error))
        except RayError as error:
            self.dismiss(hand)
            answer = Answer(HERE, reason=f"its worker on {hand.machine} ended ({died(error)})")
        if answer.kind != HERE:
            return piece, answer
        further = hand.progress[0] > piece.step
        piece.step = max(piece.step, hand.progress[0])
        piece.tries = 1 if further else piece.tries + 1
        piece.reason = answer.reason
        piece.failed_on.append(hand.machine)
        if piece.tries >= self.tries:
            return piece, Answer(REFUSED, reason=f"after {piece.tries} tries: {answer.reason}", warnings=answer.warnings)
        self.waiting.appendleft(piece)
        return None

    def look(self) -> None:
        """Asks everybody how far they are, without waiting for it."""
        for hand in self.running:
            if hand.look is None:
                hand.look = hand.actor.where.options(concurrency_group="look").remote()
            elif ray.wait([hand.look], timeout=0)[0]:
                with suppress(RayError):
                    hand.progress = ray.get(hand.look)
                hand.look = None

    def stop(self) -> list[tuple[Piece, Answer]]:
        """Has all workers keep what they have and end; gives the pieces that ended meanwhile."""
        self.waiting.clear()
        for hand in self.running:
            hand.actor.stop.options(concurrency_group="look").remote()
        ended = []
        refs = [hand.ref for hand in self.running]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=GIVE_UP) if refs else ([], [])
        for hand in [hand for hand in self.running if hand.ref in ready]:
            found = self.ended(hand)
            if found and found[1].kind == DONE:
                ended.append(found)
        self.close()
        return ended

    def close(self) -> None:
        """Ends all workers."""
        for hand in list(self.hands):
            self.dismiss(hand)


def died(error: BaseException) -> str:
    """Returns in one line why Ray says that a worker is gone."""
    said = [line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().startswith(("class_name", "actor_id"))]
    told = next(
        (line for line in said if "reason" in line.lower() or "killed" in line.lower() or "exit" in line.lower()), said[0] if said else ""
    )
    return one_line(told)[:300] or type(error).__name__
