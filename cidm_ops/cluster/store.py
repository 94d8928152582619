"""A bank at an address, such as ``s3://studio/bank``: every machine works on a copy of its own, and whole files go to the store.

The guarantees of a bank hold where the store can keep them, and it is refused where it cannot: an object is there whole or not at all; one
cluster at a time writes, by a lock that takes exclusive creation and no clock of two machines; and the index is only ever this machine's.
"""

import hashlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from ..bank.bank import TRAINING, Bank
from ..bank.files import write_atomically
from ..bank.header import NAME
from ..bank.index import SUFFIX
from ..bank.lock import writing
from ..training.checkpoint import checkpoint_file

# In these an object is seen when its upload has ended, and never a part of it.
WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "memory"}
STAMPS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime", "created")
LOCKS = ".lock"
STATE = ".copy-of.json"  # in a copy: what its files were in the store
PATIENCE = 3600.0  # seconds in which another worker of this machine may copy a bank for the first time
LEASE = 60.0  # seconds without a sign of life after which a lock is nobody's


def opened(address: str) -> tuple[Any, str]:
    """Returns the file system of an address and the path in it. Raises ``ValueError`` for a kind that fsspec does not know, or that needs
    a package which is not installed.
    """
    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{address} cannot be opened ({error})") from error
    system.use_listings_cache = False
    return system, path.rstrip("/")


def check_whole(system: Any, address: str) -> None:
    """Raises ``ValueError`` for a store in which a bank could not keep its guarantees."""
    kinds = {system.protocol} if isinstance(system.protocol, str) else {*system.protocol}
    if "file" in kinds or "local" in kinds:
        raise ValueError(f"{address} is a folder: give its path, and the bank has the locks and writes of a folder")
    if not kinds & WHOLE:
        raise ValueError(
            f"{address}: a store of the kind {sorted(kinds)[0]} writes files in place, so that others could read half of one: use one of "
            f"{', '.join(sorted(WHOLE - {'memory'}))}, or mount it and give the folder"
        )


def fetch(address: str, room: Path) -> Path:
    """Copies the files below an address into a folder, and returns that. Raises ``FileNotFoundError`` where there are none."""
    system, root = opened(address)
    found = system.find(root)
    if not found:
        raise FileNotFoundError(f"{address}: there are no files: check the address")
    for path in found:
        inside = PurePosixPath(path.removeprefix(root).lstrip("/") or PurePosixPath(path).name)
        if inside.is_absolute() or ".." in inside.parts:
            raise ValueError(f"{address} has a file {path!r}, whose name leads out of the folder: rename it")
        write_atomically(system.cat_file(path), room / inside)
    return room


class StoreCopy:
    """This machine's copy of a bank at ``address``, in ``folder``; ``name`` is the concept whose run is kept there too, if any.

    ``pull`` makes the copy what the store has, ``push`` makes the store have a file of the copy.
    """

    def __init__(self, address: str, folder: Path | None = None, name: str = ""):
        self.address, self.name = address, name
        self.system, self.root = opened(address)
        check_whole(self.system, address)
        self.folder = folder or copies() / digest_of(address)

    def listed(self, inside: str = "") -> dict[str, list[str]]:
        """Returns what tells each concept file's contents, by file name. Raises ``ValueError`` if the store tells nothing but sizes."""
        place = f"{self.root}/{inside}" if inside else self.root
        try:
            entries = self.system.ls(place, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        found = {}
        for entry in entries:
            file = PurePosixPath(entry["name"]).name
            if entry["type"] == "file" and file.endswith(SUFFIX) and NAME.fullmatch(file.removesuffix(SUFFIX)):
                stamps = [f"{key} {entry[key]}" for key in STAMPS if entry.get(key)]
                if not stamps:
                    raise ValueError(f"{self.address}: the store does not tell a file that was written anew: use another kind of store")
                found[file] = [str(entry["size"]), *stamps]
        return found

    def pull(self) -> Path:
        """Makes the copy have the concepts that the store has, and the state of the run of ``name``; what it has beside goes."""
        with writing(self.folder, wait=PATIENCE, lock=".pulling"):
            self.pull_concepts()
        if self.name:
            run = self.folder / TRAINING / f"{self.name}{SUFFIX}"
            try:
                write_atomically(self.system.cat_file(self.place_of(run)), run)
            except FileNotFoundError:
                run.unlink(missing_ok=True)
        return self.folder

    def pull_concepts(self) -> None:
        known, there = self.known(), self.listed()
        for file, stamp in there.items():
            if known.get(file) != stamp or not (self.folder / file).exists():
                with suppress(FileNotFoundError):  # removed meanwhile
                    write_atomically(self.system.cat_file(f"{self.root}/{file}"), self.folder / file)
        for mine in self.folder.glob(f"*{SUFFIX}"):
            if mine.name not in there:
                mine.unlink(missing_ok=True)
        write_atomically(json.dumps(there).encode(), self.folder / STATE)

    def known(self) -> dict[str, list[str]]:
        try:
            return json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def place_of(self, file: Path) -> str:
        """Returns where a file of the copy is in the store."""
        return f"{self.root}/{file.relative_to(self.folder).as_posix()}"

    def push(self, file: Path) -> None:
        """Writes a file of the copy into the store, whole. Raises ``OSError`` where that fails."""
        self.system.pipe_file(self.place_of(file), file.read_bytes())

    def drop(self, file: Path) -> None:
        """Removes a file from the copy and from the store."""
        file.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self.system.rm_file(self.place_of(file))


class StoreBank(StoreCopy):
    """The bank at an address for the one who may write into it: what ``lock`` is for."""

    lock: "StoreLock"

    def add(self, names: Sequence[str], concepts: Sequence[Any]) -> None:
        """Writes concepts into the bank at the address, and forgets the states of the runs of ``names``. Raises ``TimeoutError`` if another
        has the lock by now, and what ``Bank.add`` does.
        """
        bank = Bank(self.folder)
        if concepts:
            self.lock.check()
            bank = bank.add(*concepts)
            for concept in concepts:
                self.push(bank.file(concept.name))
        for name in names:
            self.drop(checkpoint_file(bank, name))


class StoreLock:
    """One holder at a time, by numbered files: who makes the next number is the holder. ``system`` has to create a file only where there is
    none.

    The holder writes a new ``beat`` into its file from time to time. Whoever waits watches for that by its own clock alone, so that clocks
    of machines may differ: a file that does not change for a ``lease`` is nobody's.
    """

    def __init__(self, system: Any, root: str, lease: float = LEASE):
        self.system, self.folder, self.lease = system, f"{root}/{LOCKS}", lease
        self.number, self.beat, self.ended = 0, 0, threading.Event()
        self.pulse = threading.Thread(target=self.keep, daemon=True)

    def place(self, number: int) -> str:
        return f"{self.folder}/{number:09d}.json"

    def create(self, path: str, data: bytes) -> bool:
        """Creates a file, and returns whether it was not there."""
        try:
            self.system.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True

    def probe(self, address: str) -> None:
        """Raises ``ValueError`` if the store lets two create the same file."""
        path = f"{self.folder}/probe-{uuid.uuid4().hex}"
        try:
            both = [self.create(path, b"{}") for _ in range(2)]
        except (TypeError, NotImplementedError, ValueError) as error:
            both = [False, bool(error)]
        with suppress(FileNotFoundError):
            self.system.rm_file(path)
        if both != [True, False]:
            raise ValueError(
                f"{address}: this store does not create a file only where there is none, so two could write into the bank at once: use "
                "another kind of store, or mount it and give the folder"
            )

    def latest(self) -> tuple[int, dict[str, Any]]:
        """Returns the highest number, 0 for none, and what its file says."""
        try:
            names = [PurePosixPath(path).stem for path in self.system.ls(self.folder, detail=False, refresh=True)]
        except FileNotFoundError:
            names = []
        number = max((int(name) for name in names if name.isdecimal()), default=0)
        try:
            return number, json.loads(self.system.cat_file(self.place(number))) if number else {"released": True}
        except (FileNotFoundError, ValueError):
            return number, {}

    def acquire(self) -> None:
        """Takes the lock. Raises ``TimeoutError`` if somebody holds it and shows signs of life."""
        number, said = self.latest()
        began, seen = time.monotonic(), said
        while not said.get("released"):
            if time.monotonic() - began > self.lease:
                break
            time.sleep(self.lease / 20)
            number, said = self.latest()
            if said != seen and not said.get("released"):
                who = f"process {said.get('process')} on {said.get('machine')}"
                raise TimeoutError(f"{who} works on the bank at this address: nothing was changed; wait for it, or stop it")
        if not self.create(self.place(number + 1), self.told()):
            raise TimeoutError("another process took the bank at this address just now: nothing was changed; wait for it, or stop it")
        self.number = number + 1
        self.pulse.start()

    def told(self, released: bool = False) -> bytes:
        return json.dumps({"process": os.getpid(), "machine": platform.node(), "beat": self.beat, "released": released}).encode()

    def keep(self) -> None:
        """Shows signs of life until the lock is released; one that fails is made up for by the next."""
        while not self.ended.wait(self.lease / 5):
            self.beat += 1
            with suppress(OSError):
                self.system.pipe_file(self.place(self.number), self.told())

    def check(self) -> None:
        """Raises ``TimeoutError`` if another holds the lock by now, as after a pause of this machine."""
        if self.latest()[0] != self.number:
            raise TimeoutError(
                "another process holds the bank at this address by now: nothing more is written; start again when it has ended"
            )

    def release(self) -> None:
        """Gives the lock up, and clears what is older."""
        self.ended.set()
        self.pulse.join()
        with suppress(OSError):
            self.system.pipe_file(self.place(self.number), self.told(released=True))
            for path in self.system.ls(self.folder, detail=False, refresh=True):
                if (name := PurePosixPath(path).stem).isdecimal() and int(name) < self.number:
                    self.system.rm_file(path)


@contextmanager
def held_store(address: str, folder: Path | None = None, lease: float = LEASE) -> Iterator[StoreBank]:
    """Keep others from writing into the bank at an address while this is open, and give it with its copy up to date. Raises ``ValueError``
    for a store that cannot keep a bank, and ``TimeoutError`` if another holds it.
    """
    bank = StoreBank(address, folder or copies() / f"{digest_of(address)}-writer")
    bank.lock = StoreLock(bank.system, bank.root, lease)
    bank.lock.probe(address)
    bank.lock.acquire()
    try:
        bank.pull()
        yield bank
    finally:
        bank.lock.release()


def digest_of(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:16]


def copies() -> Path:
    """Returns where this machine keeps copies of banks."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cidm" / "banks"
