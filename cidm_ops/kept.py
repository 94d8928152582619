"""Results that are kept by what they depend on, so that the same is not computed twice."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Results by key, of at most ``room`` bytes together: whichever was not asked for the longest goes first. ``nbytes`` measures one.

    A key says all that a result depends on; whoever takes one leaves it as it is.
    """

    def __init__(self, room: int, nbytes: Callable[[T], int]):
        self.room, self.nbytes = room, nbytes
        self.taken = 0
        self.results: OrderedDict[Hashable, T] = OrderedDict()
        self.lock = Lock()

    def take(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result for a key, made if it is not there. One that is larger than the room is made every time."""
        with self.lock:
            if key in self.results:
                self.results.move_to_end(key)
                return self.results[key]
        result = make()
        size = self.nbytes(result)
        with self.lock:
            if key not in self.results and size <= self.room:
                self.results[key] = result
                self.taken += size
            while self.taken > self.room:
                _, oldest = self.results.popitem(last=False)
                self.taken -= self.nbytes(oldest)
        return result

    def clear(self) -> None:
        """Forget all of them."""
        with self.lock:
            self.results.clear()
            self.taken = 0
