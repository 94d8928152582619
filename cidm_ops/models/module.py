"""The linear layers of a transformer under the names of several programs, and those that one program has as one and another as several.

A fused layer holds the rows of several: ``W = [W_q; W_k; W_v]``. Its low-rank change is exactly one change for each of them, with the
same ``down`` and the part's own rows of ``up``; so the names of the parts are ours, and a fused layer is told by where they lie in it.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

NUMBER = re.compile(r"(?<=[._])\d+(?=[._])")  # the first number in a layer's name that stands alone and is not its end: that of the block


def whole(total: int, width: int) -> tuple[int, ...]:
    """A layer that is no fused one has all rows."""
    return (total,)


def thirds(total: int, width: int) -> tuple[int, ...]:
    """Queries, keys and values of as many heads have a third of the rows each."""
    return (total // 3,) * 3


@dataclass(frozen=True)
class Module:
    """A linear layer as the host has it: its name there, and our names of the layers whose rows lie in it one after another, mostly one.

    ``{}`` in the names stands for the number of the block. ``rows`` says how many rows each of our layers has, from their sum and the
    width of the model. ``others`` are further names in the files of others, of a layer or of what a file has fused.
    """

    name: str
    layers: Sequence[str]
    rows: Callable[[int, int], Sequence[int]] = whole
    others: Sequence[str] = ()


@dataclass(frozen=True)
class Slice:
    """Where a layer lies: in which module, from which row on, how many rows it has, and how many columns, as all of the module."""

    module: str
    start: int
    rows: int
    columns: int


def without_number(name: str) -> tuple[str, str]:
    """A name with ``{}`` for the number of its block, and that number; "" if it is in no block."""
    found = NUMBER.search(name)
    return (f"{name[: found.start()]}{{}}{name[found.end() :]}", found[0]) if found else (name, "")


def block_in(name: str) -> str:
    """The block that a module is in, by its name: what it is called up to its first number; "" if it is in none."""
    found = NUMBER.search(name)
    return name[: found.end()] if found else ""


def reader_of(modules: Sequence[Module]) -> Callable[[str], str | None]:
    """Return what reads the name of a layer, with ``_`` for every dot, in any of the spellings of ``modules``: our name of it, or the
    host's where it holds several of ours. ``None`` for a layer that is in none of them.
    """
    known: dict[str, str] = {}
    for module in modules:
        ours = module.layers[0] if len(module.layers) == 1 else module.name
        known |= {flat(name): ours for name in (module.name, *module.others)}
        known |= {flat(name): name for name in module.layers}

    def read(name: str) -> str | None:
        pattern, number = without_number(name)
        return known[pattern].format(number) if pattern in known else None

    return read


def flat(name: str) -> str:
    """A name with ``_`` for every dot."""
    return name.replace(".", "_")


def layers_at(modules: Iterable[Module], name: str) -> list[str]:
    """Our layers in the host's module of a name, in the order of their rows; none for one that is not known."""
    pattern, number = without_number(name)
    return [layer.format(number) for module in modules if module.name == pattern for layer in module.layers]


def slices_of(modules: Iterable[Module], name: str, shape: tuple[int, int], width: int) -> dict[str, Slice]:
    """Our layers in the host's module of a name, whose weight is of a ``shape`` (out, in), in a model of a ``width``; empty for a module
    that is not known.

    Raises ``ValueError`` if the rows of the layers cannot be as many.
    """
    pattern, number = without_number(name)
    module = next((m for m in modules if m.name == pattern), None)
    if module is None:
        return {}
    total, columns = shape
    rows = module.rows(total, width)
    if sum(rows) != total or min(rows) < 1:
        raise ValueError(f"{name} has {total} rows, which cannot be those of {', '.join(module.layers)} in a model of width {width}")
    starts = [sum(rows[:i]) for i in range(len(rows))]
    return {layer.format(number): Slice(name, start, n, columns) for layer, start, n in zip(module.layers, starts, rows, strict=True)}


def module_of(modules: Iterable[Module], layer: str) -> tuple[str, Sequence[str]]:
    """The host's name of the module that our layer lies in, and all our layers in it, in order. Raises ``KeyError`` for one in none."""
    pattern, number = without_number(layer)
    for module in modules:
        if pattern in module.layers:
            return module.name.format(number), [name.format(number) for name in module.layers]
    raise KeyError(f"{layer} is no layer that is known")
