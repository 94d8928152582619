"""What opening a bank costs: each time in a process of its own, which has imported what it takes and no more."""

import mmap
import time
from multiprocessing import get_context
from pathlib import Path

from ...bank.bank import Bank


def openings(folder: Path, count: int) -> list[tuple[float, float]]:
    """Seconds and added MB of opening a bank and reading a prompt, ``count`` times one after the other."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        return fresh.map(time_opening, [folder] * count, chunksize=1)


def time_opening(folder: Path) -> tuple[float, float]:
    before, began = held(), time.perf_counter()
    bank = Bank(folder)
    bank.read(f"a <{bank.names[0]}>")
    return time.perf_counter() - began, held() - before


def held() -> float:
    """MB that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 2**20
