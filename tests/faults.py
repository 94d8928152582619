"""Faults at the instants of writing: work in a process of its own, to which something happens when it is about to change a file."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from sys import addaudithook

import torch

from cidm_ops.bank import files

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir")
EVERY = -1


def at_point(root: Path, work: Callable[[Path], object], point: int, act: Callable[[str], None]) -> tuple[int, str]:
    """Do ``work`` in a process of its own and ``act`` when it is about to change something below ``root`` for that time, from 1, or
    each time.

    Returns its exit status, and what it said: the number of changes, or the error.
    """
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        with open(read, encoding="utf-8") as pipe:
            said = pipe.read()
        return os.waitpid(process, 0)[1], said
    torch.set_num_threads(1)  # the threads of the parent are not in here
    count, code = 0, 0

    def change(what: str) -> None:
        nonlocal count
        count += 1
        if point in (count, EVERY):
            act(what)

    def hook(event: str, args: tuple) -> None:
        if (
            event in CHANGES
            and str(args[0]).startswith(str(root))
            and (event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        ):
            change(f"{event} {args[0]}")

    addaudithook(hook)
    files.os.fsync = lambda _: change("fsync")
    try:
        work(root)
        said = str(count)
    except BaseException as error:
        said, code = f"{type(error).__name__}: {error}", 1
    os.write(write, said.encode())
    os._exit(code)


def kill(what: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_room(what: str) -> None:
    if not what.endswith("/.lock") and not what.startswith("os.remove"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what.partition(" ")[2])


def read_only(what: str) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), what.partition(" ")[2])
