"""One writer at a time in a bank. The lock is the system's, so that it ends with its holder, however that ends."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

WAIT = 30.0  # seconds


@contextmanager
def writing(folder: Path, wait: float = WAIT, lock: str = ".lock") -> Iterator[None]:
    """Keep others from writing into the bank while this is open; it waits for another writer. The note of who it is is a courtesy: a full
    disk does without. With a ``lock`` of another name only those are kept away that take the same.

    Raises ``TimeoutError`` that says who holds it, and ``ValueError`` if the folder cannot be written to.
    """
    holder = folder / f"{lock}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = FileLock(folder / lock).acquire(timeout=wait)
    except Timeout as error:
        try:
            who = "process {process} on {machine} since {since}".format(**json.loads(holder.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError):
            who = "another process"
        raise TimeoutError(f"{who} is writing into the bank {folder.name!r}: nothing was changed; wait for it, or stop it") from error
    except (OSError, NotImplementedError) as error:
        raise unwritable(folder, error) from error
    with taken:
        me = {"process": os.getpid(), "machine": platform.node(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        try:
            holder.write_text(json.dumps(me), encoding="utf-8")
        except OSError:
            drop(holder)
        try:
            yield
        finally:
            drop(holder)


def drop(holder: Path) -> None:
    with suppress(OSError):
        holder.unlink(missing_ok=True)


def unwritable(folder: Path, error: Exception) -> ValueError:
    """Say that a bank cannot be written to, and what to do."""
    why = getattr(error, "strerror", None) or error
    return ValueError(f"the bank folder {folder} cannot be written to ({why}): change that or use another")
