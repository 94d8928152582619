"""The index of a bank: the headers of its files, so that opening a thousand concepts reads one file.

The files are the truth. An entry holds for a file of that size, time and inode; what the index does not know, or knows wrongly, is
read from the file, and a missing or damaged index costs time only.
"""

import json
import os
from pathlib import Path
from typing import Any

from .concept_file import Header, read_header, wrong_in
from .files import write_atomically

INDEX = "index.json"
FORMAT = 1
LARGE = ("layers", "text_layers", "token_layers", "residuals")  # of a header, that only its own tensors need


def read_headers(folder: Path) -> tuple[dict[str, Header], dict[str, str]]:
    """Headers by name in the order learned, and by name what is wrong with each damaged file."""
    if not folder.is_dir():
        return {}, {}
    with os.scandir(folder) as entries:
        files = {e.name: e.stat() for e in entries if e.name.endswith(".safetensors") and not e.name.startswith(".")}
    known, found, damaged = read_index(folder), {}, {}
    for name, stat in files.items():
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        entry = known.get(name, {})
        if entry.get("stamp") == stamp:
            found[name] = entry
            continue
        try:
            header = read_header(folder / name)
        except ValueError as error:
            damaged[name.removesuffix(".safetensors")] = str(error)
            continue
        brief = {key: value for key, value in header.items() if key not in LARGE}
        brief["training"] = {key: value for key, value in header["training"].items() if key != "losses"}
        found[name] = {"stamp": stamp, "header": brief}
    if found != known:
        write_index(folder, found)
    headers = {name.removesuffix(".safetensors"): entry["header"] for name, entry in found.items()}
    return dict(sorted(headers.items(), key=lambda item: (item[1]["task"], item[0]))), damaged


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries by file name; none if there is no index of this format that can be read."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        entries = index["concepts"] if index["format"] == FORMAT else {}
        return {name: e for name, e in entries.items() if not wrong_in(dict.fromkeys(LARGE, []) | e["header"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def write_index(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    """Replace the index; a folder that cannot be written to does without."""
    try:
        write_atomically(json.dumps({"format": FORMAT, "concepts": entries}).encode(), folder / INDEX)
    except OSError:
        return
