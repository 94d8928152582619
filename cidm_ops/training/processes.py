"""Processes that learn one concept together: each takes its share of every batch, and their gradients are added up.

What is here is the process that learns alone; those that a launcher started are in ``cluster/launched.py``. Noise, captions and the order
of the pictures come from the seed and the number of the step, and are the same in all of them, so that two processes with a picture each
take the very step that one takes with both.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import nn


class Processes:
    """``count`` of them, of which this is ``number``; the ``first`` one writes files and speaks for all."""

    count, number = 1, 0

    @property
    def first(self) -> bool:
        return self.number == 0

    def share(self, size: int) -> range:
        """Returns which samples of a batch this process takes: an equal part, or one more than others do."""
        return range(self.number * size // self.count, (self.number + 1) * size // self.count)

    def add_gradients(self, parameters: Sequence[nn.Parameter], loss: float, short: bool) -> tuple[float, bool]:
        """Makes the gradients of all processes their sum, and returns the sum of their losses and whether memory was short in any."""
        return loss, short

    def check_same(self, what: str) -> None:
        """Raises ``ValueError`` if another process says anything else than this one."""

    def one_reads_first(self) -> AbstractContextManager[None]:
        """Have one process of each machine do what is done while this is open before the others: a file is then fetched once."""
        return nullcontext()

    def wait(self) -> None:
        """Waits for all others to come here too."""


ALONE = Processes()
