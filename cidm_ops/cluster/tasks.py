"""A file of tasks: a concept to learn a line, as JSON. Nothing here computes, so that a file is checked at once."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from ..bank.header import check_name

BLANK = ("", "#")  # such lines are skipped, and so is what begins with a sign of a comment
PLACES = ("images", "prior")  # fields that name a folder
POSITIVE = ("steps", "rank", "cpus", "memory")
Needs = tuple[float, float, float]  # cores, GPUs or a part of one, and GB of memory


def is_address(place: str) -> bool:
    """Whether a place is an address such as ``s3://bucket/folder`` and no path."""
    return "://" in place


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a file of tasks: what ``cidm train`` takes for one concept, with ``number`` the line's in the file, from 1.

    ``set`` has settings as ``name=value``, ``vision`` is the image tower of a method that compares pictures with words. ``cpus``, ``gpus``
    and ``memory`` (in GB) are what this task asks of a machine where it is not what the command says for all. None and empty texts stand
    for what the command or the base has as its default.
    """

    number: int
    images: str
    class_word: str
    name: str = ""
    style: bool = False
    flip: bool = False
    method: str = "cidm"
    fit: str = "centre"
    existing: str = "replace"
    prior: str = ""
    steps: int | None = None
    rank: int | None = None
    seed: int | None = None
    set: Sequence[str] = field(default_factory=list)
    vision: str = ""
    cpus: float | None = None
    gpus: float | None = None
    memory: float | None = None

    @property
    def settings(self) -> dict[str, int]:
        """The settings that have a field of their own and are given."""
        return {name: value for name in ("steps", "rank") if (value := getattr(self, name)) is not None}

    def needs(self, common: Needs) -> Needs:
        """Returns what the task asks of a machine, ``common`` where it says nothing."""
        own = (self.cpus, self.gpus, self.memory)
        cpus, gpus, memory = (whole if mine is None else mine for mine, whole in zip(own, common, strict=True))
        return cpus, gpus, memory


FIELDS = {f.name: f.type for f in fields(Line) if f.name != "number"}
KINDS: dict[Any, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    int | None: (int,),
    float | None: (int, float),
    Sequence[str]: (list, dict),
}
KIND_NAMES: dict[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list of name=value",
    dict: "an object",
}


def read_tasks(text: str, folder: Path) -> tuple[list[Line], dict[int, str], list[str]]:
    """Reads a file of tasks that lies in ``folder``, from which relative paths in it go.

    Returns the lines that can be, by number what is wrong with each of the others, and what a person should know: the same task twice is
    one.
    """
    lines: dict[str, Line] = {}
    broken: dict[int, str] = {}
    remarks = []
    for number, written in enumerate(text.splitlines(), 1):
        if written.strip() in BLANK or written.strip().startswith("#"):
            continue
        try:
            line = read_line(number, written, folder)
            known = lines.setdefault(line.name, line)
            if known is line:
                check_case(line.name, lines)
            elif replace(known, number=number) == line:
                remarks.append(f"line {number} is the task of line {known.number} again: it is done once")
            else:
                broken[number] = f"<{line.name}> is on line {known.number} already, with other words: give every concept a name of its own"
        except ValueError as error:
            broken[number] = str(error)
    return [line for line in lines.values() if line.number not in broken], broken, remarks


def check_case(name: str, lines: Mapping[str, Line]) -> None:
    """Raises ``ValueError`` if a name differs from another one in case only."""
    if twin := next((other for other in lines if other != name and other.lower() == name.lower()), ""):
        raise ValueError(f"<{name}> differs from <{twin}> of line {lines[twin].number} in case only: choose another name")


def read_line(number: int, written: str, folder: Path) -> Line:
    """Reads one line. Raises ``ValueError`` with what is wrong, what was expected and what to do."""
    try:
        given = json.loads(written)
    except (ValueError, RecursionError) as error:
        said = getattr(error, "msg", "too deep")
        raise ValueError(f"no JSON ({said}): expected one object a line, such as {{'images': 'rex', 'class_word': 'dog'}}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{written.strip()[:40]!r}: expected an object, such as {{'images': 'rex', 'class_word': 'dog'}}")
    for key in given:
        if key not in FIELDS:
            meant = difflib.get_close_matches(key, FIELDS, 1)
            raise ValueError(f"{key!r} is no part of a task: {f'did you mean {meant[0]!r}?' if meant else 'expected ' + ', '.join(FIELDS)}")
    for key in ("images", "class_word"):
        if not str(given.get(key, "")).strip():
            raise ValueError(f"{key!r} is missing: a task has at least images and class_word")
    values = {key: checked(key, value) for key, value in given.items()}
    for key in PLACES:
        if values.get(key) and not is_address(values[key]):
            values[key] = str((folder / Path(values[key]).expanduser()).resolve())
    name = values.get("name") or Path(values["images"].rstrip("/")).name
    return Line(**{**values, "name": check_name(name), "number": number})


def checked(key: str, value: Any) -> Any:
    """Returns the value of a field. Raises ``ValueError`` for one of another kind."""
    kinds = KINDS[FIELDS[key]]
    if type(value) not in kinds:
        expected = " or ".join(KIND_NAMES[kind] for kind in kinds)
        raise ValueError(f"{key!r} is {json.dumps(value)[:40]}: expected {expected}")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{key!r} is {value}: expected a number")
    if (key in POSITIVE and value <= 0) or (key in ("gpus", "seed") and value < 0):
        raise ValueError(f"{key!r} is {value}: expected more than 0" if key in POSITIVE else f"{key!r} is {value}: expected 0 or more")
    if key != "set":
        return value
    return [*settings_of(value)]


def settings_of(value: Any) -> Iterator[str]:
    """Gives settings as ``name=value``, from such texts or from an object. Raises ``ValueError`` for anything else."""
    for entry in value:
        if isinstance(value, dict):
            told = value[entry]
            yield f"{entry}={str(told).lower() if isinstance(told, bool) else told}"
        elif isinstance(entry, str) and "=" in entry:
            yield entry
        else:
            raise ValueError(f"'set' has {str(entry)[:40]!r}: expected name=value, or an object of them")


def waves_of(lines: Sequence[Line], width: int, alone: Sequence[str]) -> list[list[Line]]:
    """Returns the lines in waves of at most ``width``, in the file's order. Lines by the methods of ``alone``, which are kept apart from
    nothing, count in no wave: they go along with the one that they stand in.
    """
    waves: list[list[Line]] = [[]]
    for line in lines:
        if line.method not in alone and sum(one.method not in alone for one in waves[-1]) == width:
            waves.append([])
        waves[-1].append(line)
    return [wave for wave in waves if wave]
