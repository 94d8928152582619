"""How far a bank goes: a calculation from what one concept, one machine and one disk take. Its inputs stand beside what comes of them.

Nothing is measured here. What one concept takes of a bank is measured by `cidm bench bank`, what it takes to learn by any run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..text_table import text_table
from .board import duration

FLOAT = 4  # bytes
HOUR = 3600.0
LARGEST_INDEX = 256.0  # MB of an index that is read: bank.index.LARGEST


@dataclass(frozen=True)
class Inputs:
    """What the calculation takes. Seconds and sizes are those of one concept.

    ``learn``: seconds of training; ``file``: MB; ``index``: KB of it in the index; ``open`` and ``add``: microseconds that each concept
    of a bank costs when it is opened, and when others are added to it; ``rank`` of the factors and ``widths``, how many layers write into
    how many features; ``disk``: MB a second of a shared store; ``memory``: GB of a worker; ``price``: of an hour of a GPU.
    """

    learn: float = 600.0
    file: float = 1.0
    index: float = 0.8
    open: float = 80.0
    add: float = 570.0
    rank: int = 4
    widths: tuple[tuple[int, int], ...] = ((320, 10), (640, 10), (1280, 12))  # keys and values of SD1.5
    disk: float = 1000.0
    memory: float = 32.0
    price: float = 2.0


@dataclass(frozen=True)
class Scale:
    """What comes of it for ``concepts`` on ``gpus``: sizes in GB, times in seconds, and ``gives``, what gives way, each with a mend."""

    concepts: int
    gpus: int
    files: float
    index: float
    opening: float
    bases: float
    earlier: float
    earlier_seconds: float
    learning: float
    adding: float
    cost: float
    gives: tuple[str, ...]


def saturated(inputs: Inputs) -> tuple[int, int]:
    """Returns after how many concepts the narrowest and the widest layer have no direction left that none of them writes into: from there
    on consolidation keeps nothing apart in it.
    """
    wide = [width for width, _ in inputs.widths]
    return -(-min(wide) // inputs.rank), -(-max(wide) // inputs.rank)


def bases(inputs: Inputs, concepts: int) -> float:
    """Returns GB of the orthonormal bases of what earlier concepts write, one per layer: they stop growing when a layer is full."""
    numbers = sum(layers * width * min(width, concepts * inputs.rank) for width, layers in inputs.widths)
    return numbers * FLOAT / 2**30


def scale(inputs: Inputs, concepts: int, gpus: int, wave: int = 0) -> Scale:
    """Returns what a bank of ``concepts`` takes, learned on ``gpus`` in waves of ``wave`` (as many as there are GPUs if 0).

    A task reads every earlier concept once, half of all on average; those of a wave are added together, when half of the bank is there on
    average.
    """
    at_once = min(gpus, wave or gpus)
    earlier = concepts * inputs.file / 1024
    opening = concepts * inputs.open * 1e-6
    return Scale(
        concepts,
        gpus,
        files=earlier,
        index=concepts * inputs.index / 2**20,
        opening=opening,
        bases=bases(inputs, concepts),
        earlier=earlier,
        earlier_seconds=earlier * 1024 / inputs.disk,
        learning=concepts * (inputs.learn + earlier * 1024 / inputs.disk / 2) / at_once,
        adding=concepts / at_once * concepts * inputs.add * 1e-6 / 2,
        cost=concepts * (inputs.learn + earlier * 1024 / inputs.disk / 2) / HOUR * inputs.price,
        gives=tuple(gives(inputs, concepts)),
    )


def gives(inputs: Inputs, concepts: int) -> Iterator[str]:
    """Gives what of the design gives way at that size, what comes first first, with what mends it."""
    narrow, wide = saturated(inputs)
    if concepts > narrow:
        yield (
            f"apartness: from {narrow} (narrowest layers) to {wide} concepts (widest) every direction is taken, and consolidation keeps "
            "nothing apart; a bank for each subject, or a lower rank, and routing by name, which mixes nothing"
        )
    earlier = concepts * inputs.file / 1024
    if earlier > inputs.memory / 2:
        first = int(inputs.memory / 2 * 1024 / inputs.file)
        yield (
            f"memory: a task holds all earlier concepts, {earlier:.0f} GB, from {first} on more than half of a worker's; keep the bases of "
            f"layers beside the bank, which never take more than {bases(inputs, concepts):.2f} GB"
        )
    if earlier * 1024 / inputs.disk > inputs.learn / 10:
        first = int(inputs.learn / 10 * inputs.disk / inputs.file)
        yield f"reading: from {first} concepts on a task reads earlier ones for a tenth of its time; the same bases mend it"
    if concepts * inputs.add * 1e-6 > inputs.learn / 10:
        first = int(inputs.learn / 10 / (inputs.add * 1e-6))
        yield (
            f"adding: to write a wave takes a tenth of its time from {first} concepts on, since the bank is opened and its index written; "
            "wider waves, or several banks, merged at the end"
        )
    if concepts * inputs.index / 1024 > LARGEST_INDEX:
        first = int(LARGEST_INDEX * 1024 / inputs.index)
        yield (
            f"the index: from {first} concepts on it is over {LARGEST_INDEX:.0f} MB and not read, and opening reads every file; several "
            "banks, by subject or by the first letter of the name"
        )


def record(inputs: Inputs, found: Sequence[Scale]) -> dict[str, Any]:
    """Returns inputs and results as JSON takes them."""
    return {"inputs": asdict(inputs), "scales": [asdict(one) for one in found]}


def table(inputs: Inputs, found: Sequence[Scale]) -> str:
    """Returns inputs and results for people."""
    rows: Mapping[str, list[str]] = {
        "concepts": [f"{one.concepts:,}" for one in found],
        "GPUs": [f"{one.gpus:,}" for one in found],
        "files": [size(one.files) for one in found],
        "index": [size(one.index) for one in found],
        "opening": [duration(one.opening) for one in found],
        "bases of consolidation": [size(one.bases) for one in found],
        "earlier concepts, read by a task": [f"{size(one.earlier)}, {duration(one.earlier_seconds)}" for one in found],
        "adding all": [duration(one.adding) for one in found],
        "learning all": [duration(one.learning) for one in found],
        "cost": [f"{one.cost:,.0f}" for one in found],
    }
    given = ", ".join(f"{name} {value}" for name, value in asdict(inputs).items() if name != "widths")
    layers = ", ".join(f"{count} layers of {width}" for width, count in inputs.widths)
    told = [f"{one.concepts:,} concepts: {said}." for one in found for said in one.gives]
    return "\n".join([f"Inputs: {given}; {layers}.", text_table([[name, *cells] for name, cells in rows.items()]), *told])


def size(gigabytes: float) -> str:
    """Returns a size in the unit that suits it."""
    if gigabytes >= 1024:
        return f"{gigabytes / 1024:.1f} TB"
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{gigabytes * 1024:.1f} MB"
