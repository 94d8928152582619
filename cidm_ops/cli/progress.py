"""What a command says on stderr while it works: warnings, and bars where stderr is a terminal."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..printable import one_line


def warn(warnings: Iterable[str | None]) -> None:
    """Prints a line for each warning; None is none."""
    for warning in filter(None, warnings):
        print(f"cidm: warning: {one_line(warning)}", file=sys.stderr)


@contextmanager
def training_bar(shown: bool = True) -> Iterator[Callable[[Any], None]]:
    """Shows a bar of training steps with the loss; gives the callback that takes the trainer after every step."""
    from tqdm import tqdm

    with tqdm(desc="training", unit="step", disable=None if shown else True) as bar:

        def show(trainer: Any) -> None:
            bar.total = trainer.config.steps
            bar.set_postfix(loss=f"{trainer.losses[-1]:.4f}", refresh=False)
            bar.update(trainer.step - bar.n)

        yield show


@contextmanager
def counting_bar(what: str, unit: str, delay: float = 0) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar of what is done out of how many, once ``delay`` seconds have gone; gives the callback that takes both."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, delay=delay, disable=None) as bar:

        def show(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        yield show
