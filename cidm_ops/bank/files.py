"""How files are written: whole or not at all."""

import errno
import os
from contextlib import suppress
from glob import escape
from pathlib import Path

from safetensors import SafetensorError, safe_open

ATTEMPTS = 5
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(data: bytes, file: Path) -> None:
    """Temporary file, fsync, rename, fsync of the folder. Raises ``OSError`` naming the file; what was there stays.

    What an interrupted writer left of the same file goes. One who is still at it, and finds its part cleared away, writes it again.
    """
    clear_parts(file.parent, f".{escape(file.name)}.*.partial")
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    for attempt in range(ATTEMPTS):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, file)
            break
        except FileNotFoundError as error:
            if attempt + 1 == ATTEMPTS:
                raise not_written(file, error) from error
        except OSError as error:
            raise not_written(file, error) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    if os.name == "posix":
        with suppress(OSError):  # the file is there; not every disk can sync a folder
            sync(file.parent)


def sync(folder: Path) -> None:
    """Have the disk remember which files are in a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def not_written(file: Path, error: OSError) -> OSError:
    """Say that a file could not be written, why, and what to do."""
    do = "make room and start again" if error.errno in FULL else "change that or choose another place"
    what = f"{file} cannot be written ({error.strerror}): nothing is lost, what was there before is unchanged; {do}"
    return type(error)(error.errno, what)


def parts(folder: Path, pattern: str = ".*.partial") -> list[Path]:
    """List the files in a folder that writers are at, or left when they were interrupted."""
    return sorted(folder.glob(pattern))


def clear_parts(folder: Path, pattern: str = ".*.partial") -> None:
    """Remove the parts in a folder. A writer who is still at one writes it again."""
    for part in parts(folder, pattern):
        with suppress(OSError):
            part.unlink(missing_ok=True)


def check_replaceable(file: Path, mark: str) -> None:
    """Raises ``ValueError`` if there is a file that we did not write, which would be lost: ours have ``mark`` in their metadata."""
    if not file.exists():
        return
    with suppress(SafetensorError, OSError, ValueError), safe_open(file, "np") as f:
        if mark in (f.metadata() or {}):
            return
    raise ValueError(f"{file} is there and was made otherwise: remove it, or choose another place")
