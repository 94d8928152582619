"""How far a list of tasks is: as a table for people, and as JSON for programs. Times are told by this machine's clock alone."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..text_table import text_table

WAITING, RUNNING, LEARNED, FOUND, ASIDE = "waiting", "running", "done", "found", "set aside"
SHOWN = 12  # rows of the table for what runs


@dataclass
class Row:
    """One task: its state, where it runs and how far it is, how often it failed, and why it was set aside."""

    state: str = WAITING
    machine: str = ""
    step: int = 0
    steps: int = 0
    tries: int = 0
    reason: str = ""


class Board:
    """The tasks by name. ``told`` is called when one has ended, with its name."""

    def __init__(self, names: Sequence[str], told: Callable[[str], None] = lambda name: None):
        self.rows = {name: Row() for name in names}
        self.told, self.began = told, time.monotonic()

    def watch(self, running: Sequence[Any]) -> None:
        """Takes over what the workers of a pool are at."""
        now = {hand.piece.name: hand for hand in running}
        for name, row in self.rows.items():
            if hand := now.get(name):
                row.state, row.machine, row.tries = RUNNING, hand.machine, hand.piece.tries
                row.step, row.steps = hand.progress
            elif row.state == RUNNING:
                row.state = WAITING

    def end(self, name: str, state: str, reason: str = "") -> None:
        """Notes how a task ended."""
        row = self.rows[name]
        row.state, row.reason = state, reason
        self.told(name)

    def count(self, state: str) -> int:
        return Counter(row.state for row in self.rows.values())[state]

    @property
    def aside(self) -> dict[str, str]:
        """Why tasks were set aside, by name."""
        return {name: row.reason for name, row in self.rows.items() if row.state == ASIDE}

    @property
    def per_hour(self) -> float:
        """Tasks that were done in an hour, those not counted that were found done."""
        return self.count(LEARNED) / max(1e-9, time.monotonic() - self.began) * 3600

    @property
    def seconds_left(self) -> float | None:
        """What the rest takes at this rate; None as long as nothing was done."""
        rest = self.count(WAITING) + self.count(RUNNING)
        return 3600 * rest / self.per_hour if self.count(LEARNED) else None

    def record(self) -> dict[str, Any]:
        """Returns everything as JSON takes it."""
        counts = {state.replace(" ", "_"): self.count(state) for state in (LEARNED, FOUND, RUNNING, WAITING, ASIDE)}
        left = self.seconds_left
        return {
            **counts,
            "per_hour": round(self.per_hour, 3),
            "seconds": round(time.monotonic() - self.began, 1),
            "seconds_left": None if left is None else round(left, 1),
            "tasks": {name: asdict(row) for name, row in self.rows.items()},
        }

    def line(self) -> str:
        """Returns the figures in one line."""
        left = self.seconds_left
        more = "" if left is None else f", {self.per_hour:.1f} an hour, {duration(left)} left"
        done = self.count(LEARNED) + self.count(FOUND)
        found = f" ({self.count(FOUND)} were there)" if self.count(FOUND) else ""
        return f"{done} of {len(self.rows)} done{found}, {self.count(RUNNING)} running, {self.count(ASIDE)} set aside{more}"

    def table(self) -> str:
        """Returns the figures, and what runs now."""
        running = [(name, row) for name, row in self.rows.items() if row.state == RUNNING]
        cells = [[name, row.machine, f"{row.step}/{row.steps}" if row.steps else "begins", f"try {row.tries + 1}"] for name, row in running]
        return "\n".join([self.line(), *([text_table(cells[:SHOWN])] if cells else [])])


def duration(seconds: float) -> str:
    """Returns a time in two units at most: "3 h 20 min", "45 s"."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
