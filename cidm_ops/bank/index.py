"""The index of a bank: the headers of its files, so that opening a thousand concepts reads one file.

The files are the truth. An entry holds for a file of that size, time and inode; what the index does not know, or knows wrongly, is
read from the file, and a missing or damaged index costs time only.
"""

import json
import os
from pathlib import Path
from typing import Any

from .files import write_atomically
from .header import NAME, Header, read_header, wrong_in

INDEX = "index.json"
SUFFIX = ".safetensors"
ATTEMPTS = 20
LARGEST = 1 << 28  # bytes of an index that is read
FORMAT = 1
LARGE = ("layers", "text_layers", "token_layers", "residuals")  # of a header, that only its own tensors need


def read_headers(folder: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """Headers by name in the order learned, and by name what is wrong with each damaged file.

    Others may write meanwhile: a file that is gone when it is read is not damaged, and the folder is read again.
    """
    index = known = read_index(folder)
    for _ in range(ATTEMPTS):
        if not folder.is_dir():
            return {}, {}
        began = folder.stat().st_mtime_ns
        known, damaged, gone = read_files(folder, known)
        if not gone and folder.stat().st_mtime_ns == began:
            break
    if known != index:
        write_index(folder, known)
    headers = {name.removesuffix(SUFFIX): entry["header"] for name, entry in known.items()}
    return dict(sorted(headers.items(), key=lambda item: (item[1]["task"], item[0]))), damaged


def read_files(folder: Path, known: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, str], bool]:
    """Entries by file name, what is wrong with each damaged concept, and whether a file went while it was being read."""
    found, damaged, gone = {}, {}, False
    with os.scandir(folder) as entries:
        files = [e for e in entries if e.name.endswith(SUFFIX) and not e.name.startswith(".")]
    for file in files:
        now, entry, name = stamp(folder / file.name), known.get(file.name, {}), file.name.removesuffix(SUFFIX)
        if NAME.fullmatch(name) and entry.get("stamp") == now != []:
            found[file.name] = entry
            continue
        try:
            header = header_of(folder / file.name)
        except ValueError as error:
            if stamp(folder / file.name) == [] and not file.is_symlink():
                gone = True
            else:
                damaged[name] = str(error)
            continue
        brief = {key: value for key, value in header.items() if key not in LARGE}
        brief["training"] = {key: value for key, value in header["training"].items() if key != "losses"}
        found[file.name] = {"stamp": now, "header": brief}
    return found, damaged, gone


def stamp(file: Path) -> list[int]:
    """A stamp tells whether a file has changed: its size, time and inode; it is empty for a file that is not there."""
    try:
        stat = file.stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def header_of(file: Path) -> Header:
    """Raises ``ValueError`` for what is no concept file, before it is opened if it is no file at all: a pipe would wait for ever."""
    if not NAME.fullmatch(file.name.removesuffix(SUFFIX)):
        raise ValueError(f"{file.name}: no name of a concept, which has letters, digits, '-' and '_' only, 64 at most: rename the file")
    if not file.is_file():
        what = "no ordinary file" if file.exists() else "a link to a file that is not there"
        raise ValueError(f"{file.name}: {what}: move it out of the bank")
    try:
        return read_header(file)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file.name}: it cannot be read ({error}): restore it from a copy or remove it from the bank") from error


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries by file name; none if there is no index of this format that can be read."""
    try:
        if not (folder / INDEX).is_file() or (folder / INDEX).stat().st_size > LARGEST:
            return {}
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        entries = index["concepts"] if index["format"] == FORMAT else {}
        return {name: e for name, e in entries.items() if not wrong_in(dict.fromkeys(LARGE, []) | e["header"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError):
        return {}


def write_index(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Replace the index; a folder that cannot be written to does without."""
    try:
        write_atomically(json.dumps({"format": FORMAT, "concepts": entries}).encode(), folder / INDEX)
    except OSError:
        return
