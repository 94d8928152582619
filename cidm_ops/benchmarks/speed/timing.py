"""How things are timed here: the sides take turns, and the figures carry the machine and the versions."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "diffusers", "transformers", "numpy")


def interleave(sides: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Measure the seconds of every call, side by side: one call of each side in turn, ``rounds`` times, after ``warmup`` rounds that do not
    count.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warmup, rounds):
        for name, call in sides.items():
            began = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def figures(times: Mapping[str, list[float]]) -> dict[str, float]:
    """``<side>_seconds`` is the median, ``<side>_spread`` half the distance between the quartiles over the median."""
    out: dict[str, float] = {}
    for name, seconds in times.items():
        median = statistics.median(seconds)
        low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
        out |= {f"{name}_seconds": round(median, 5), f"{name}_spread": round((high - low) / 2 / median, 4)}
    return out


def ratio(times: Mapping[str, list[float]], side: str, other: str) -> float:
    """Median over the rounds of the one side's time by the other's in the same round: what slows the machine slows both."""
    return round(statistics.median(a / b for a, b in zip(times[side], times[other], strict=True)), 4)


def peak_memory(call: Callable[[], Any]) -> float:
    """GB that the device, or on the CPU this process, holds at most while ``call`` runs; what is held already counts."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        call()
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak begins anew
    call()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 2**20, 3)


def machine() -> dict[str, Any]:
    """Say where and with what the figures were made."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}
