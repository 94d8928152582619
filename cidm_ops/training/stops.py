"""Signals that end a program: they all end a command as Ctrl-C does, and wait where a step would be cut in two."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

# Ctrl-C, a system or a scheduler that ends the program, and a terminal that is closed
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def handle_signals(handler: Any, numbers: list[int]) -> Iterator[None]:
    """Handle these signals so while this is open. Python hands them to the main thread only: in others nothing changes."""
    if current_thread() is not main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Give each of these signals the handler back that it has now when this closes, whatever a library has put in its place."""
    kept = {number: handler for number in ENDING if (handler := signal.getsignal(number)) is not None}  # None: not Python's, cannot be set
    try:
        yield
    finally:
        if current_thread() is main_thread():
            for number, handler in kept.items():
                signal.signal(number, handler)


@contextmanager
def end_as_interrupts() -> Iterator[None]:
    """Let signals that would end the program raise ``KeyboardInterrupt`` while this is open; one that is ignored, as by nohup, stays so."""
    with handle_signals(interrupt, [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]):
        yield


@contextmanager
def hold_signals() -> Iterator[list[int]]:
    """Hold the signals that would raise while this is open, and give the list of those that came."""
    came: list[int] = []
    with handle_signals(lambda number, frame: came.append(number), [n for n in ENDING if callable(signal.getsignal(n))]):
        yield came


@contextmanager
def keep_together() -> Iterator[None]:
    """Keep together what must not be cut in two: a signal that comes while this is open acts when it closes."""
    with hold_signals() as came:
        yield
    if came:
        signal.raise_signal(came[0])
