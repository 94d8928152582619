"""How files that people bring are read: ordinary ones, of a bounded size, and texts in an encoding that they say."""

import codecs
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_TEXT = 10 * 2**20  # bytes
# what a text of these encodings begins with; UTF-32's begins with that of UTF-16
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
SPECIAL = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe without a writer is not waited for


def special(mode: int) -> str:
    """Tell what a file with that mode is if it is no ordinary one, such as "a pipe"; "" for an ordinary file."""
    return "" if stat.S_ISREG(mode) else SPECIAL.get(stat.S_IFMT(mode), "no ordinary file")


def open_ordinary(file: Path) -> BinaryIO:
    """Opens a file for reading, links followed. What is no ordinary file is neither waited for nor read.

    Raises ``FileNotFoundError`` and ``ValueError`` that name the file.
    """
    try:
        if not (what := special(os.stat(file).st_mode)):
            opened = os.open(file, READ)
            if not (what := special(os.fstat(opened).st_mode)):  # it may be another one by now
                return open(opened, "rb")
            os.close(opened)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: there is no such file") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be opened ({error.strerror}): change that, or give another file") from error
    raise ValueError(f"{file} is {what}: expected an ordinary file")


def read_text(file: Path, largest: int = LARGEST_TEXT) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with their mark. The mark itself is no part of it.

    Raises ``FileNotFoundError`` and ``ValueError`` that name the file: for another encoding, for no text and for more than ``largest``
    bytes.
    """
    try:
        with open_ordinary(file) as f:
            data = f.read(largest + 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{file} cannot be read ({error.strerror}): repair it, or give another file") from error
    if len(data) > largest:
        raise ValueError(f"{file} has more than {largest} bytes: expected a text of at most that; make it shorter")
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    try:
        text = data[len(mark) :].decode(MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{file} is no text in UTF-8, it has zeros in it: save it as UTF-8")
    return text


def read_json(file: Path) -> Any:
    """Read what a file of JSON holds. Raises ``FileNotFoundError`` and ``ValueError`` that name the file."""
    text = read_text(file)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON that can be read ({error}): correct it, or make it anew") from error
