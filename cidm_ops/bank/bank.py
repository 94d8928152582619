"""A concept bank: a folder with one file per concept, in the order they were learned."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError

from ..grammar import article
from ..models.earlier import EARLIER
from .concept import Concept
from .concept_file import load_concept, save_concept
from .files import clear_parts
from .header import Header, check_name
from .index import read_headers, stamp
from .lock import unwritable, writing
from .mentions import Prompt, Vocabulary

TRAINING = ".training"  # the folder in a bank with the states of runs that are not done
ATTEMPTS = 5


class Bank:
    """The concepts of a folder. Opening reads headers only; a damaged file is set aside in ``damaged`` by name.

    A bank holds concepts of one architecture. Each file is written atomically, one writer at a time: a bank survives a
    crash at any instant.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.headers, self.damaged = read_headers(self.folder)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.headers)

    @property
    def names(self) -> list[str]:
        """Names in the order learned."""
        return list(self.headers)

    def title(self, name: str) -> str:
        """A concept in a line: ``<rex>, a dog``, or ``<rex>`` if it has no class word."""
        word = self.headers[name]["class_word"]
        return f"<{name}>, {article(word)}" if word else f"<{name}>"

    def file(self, name: str) -> Path:
        return self.folder / f"{check_name(name)}.safetensors"

    def get(self, name: str) -> Concept:
        """Load one concept, under the name of its file. Raises ``KeyError`` for an unknown name and for one that was renamed or removed
        meanwhile, ``ValueError`` for a damaged file.
        """
        if name in self.damaged:
            raise ValueError(self.damaged[name])
        if name not in self.headers:
            raise KeyError(f"no concept {name!r} in bank {self.folder}: it has {', '.join(self.names) or 'none yet'}")
        file = self.file(name)
        for attempt in range(ATTEMPTS):
            before = stamp(file)
            if not before:
                break
            try:
                return replace(load_concept(file), name=name)
            except (ValueError, OSError, RuntimeError, SafetensorError):
                if stamp(file) == before or attempt + 1 == ATTEMPTS:
                    raise  # else someone wrote it while it was being read
        raise KeyError(f"concept {name!r} was renamed or removed since the bank {self.folder.name!r} was opened: open it again")

    def concepts(self) -> list[Concept]:
        """All concepts in the order learned. Raises ``ValueError`` if one is damaged: training and merging need them all."""
        if self.damaged:
            raise ValueError(next(iter(self.damaged.values())))
        return [self.get(name) for name in self.names]

    def before(self, name: str) -> list[str]:
        """Names of the concepts learned before ``name``: all of them if it is new. Raises ``ValueError`` if a file is damaged, or the
        bank has that name in another case.
        """
        if self.damaged:
            raise ValueError(next(iter(self.damaged.values())))
        self.check_case(name)
        return self.names[: self.names.index(name)] if name in self.names else self.names

    def check_writable(self) -> None:
        """Raises ``ValueError`` if nothing can be written into the folder, before hours of training find that out. What interrupted
        writers left there goes.
        """
        probe = self.folder / f".writable.{os.getpid()}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            clear_parts(self.folder)
            clear_parts(self.folder / TRAINING)
            with open(probe, "wb") as f:
                f.write(bytes(4096))
        except OSError as error:
            raise unwritable(self.folder, error) from error
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def add(self, *concepts: Concept) -> "Bank":
        """Write a concept as the latest task and return the bank reopened. A concept of the same name is replaced in place. Several are
        all checked before the first is written.

        Raises ``ValueError`` if the bank's concepts are for another architecture, its words or its name in another case are taken, a
        file of that name is no whole concept, or the folder cannot be written to, ``TimeoutError`` if another process goes on writing.
        """
        for concept in concepts:
            check_name(concept.name)
        with writing(self.folder):
            now = Bank(self.folder)  # another process may have written since this one was opened
            for concept in concepts:
                if concept.name in now.damaged:
                    raise ValueError(f"{now.damaged[concept.name]}; as long as it is there, choose another name")
                now.check_fits(concept)
            last = max((h["task"] for h in now.headers.values()), default=0)
            for concept in concepts:
                if known := now.headers.get(concept.name):
                    task = known["task"]
                else:
                    task = last = last + 1
                save_concept(replace(concept, task=task), self.file(concept.name))
        return Bank(self.folder)

    def check_fits(self, concept: Concept) -> None:
        """Raises ``ValueError`` if the bank's concepts are for another architecture, or words, triggers or the name are taken."""
        self.check_case(concept.name)
        mine = claims(concept.words, concept.triggers)
        for name, header in self.headers.items():
            if name == concept.name:
                continue
            if header["architecture"] != concept.architecture:
                raise ValueError(
                    f"concept {concept.name!r} is for {concept.architecture}, this bank for {header['architecture']}: use another bank"
                )
            if taken := mine & claims(header["words"], header["triggers"]):
                raise ValueError(f"the word {sorted(taken)[0]} belongs to concept {name!r} already: choose another name")

    def check_case(self, name: str) -> None:
        """Raises ``ValueError`` for a new name that differs from one of the bank's in case only."""
        if name not in self.headers and (other := next((n for n in (*self.headers, *self.damaged) if alike(n, name)), "")):
            raise ValueError(
                f"bank {self.folder.name!r} has a concept {other!r}, and {name!r} differs from it in case only, which is the same file on "
                "Windows and macOS: choose another name"
            )

    def read(self, prompt: str) -> Prompt:
        """A prompt with its handles written out, and the concepts it mentions.

        Raises ``ValueError`` for a word no concept has, and for what looks like a handle and is none, with what was probably meant.
        """
        try:
            return self.vocabulary.read(prompt)
        except KeyError as error:
            word = error.args[0][:80]
            if word[1:-1] in self.damaged:
                raise ValueError(self.damaged[word[1:-1]]) from error
            meant = f"did you mean <{near}>? " if (near := self.vocabulary.closest(word)) else ""
            have = ", ".join(f"<{n}>" for n in self.names[:20]) + (", ..." if len(self.names) > 20 else "")
            raise ValueError(f"no concept has the word {word}: {meant}bank {self.folder.name!r} has {have or 'none yet'}") from error


def alike(one: str, other: str) -> bool:
    """Whether two names differ in case only."""
    return one != other and one.lower() == other.lower()


def claims(words: Sequence[str], triggers: Sequence[str]) -> set[str]:
    """The words and triggers that only one concept of a bank can have."""
    return {*words, *(trigger.lower() for trigger in triggers)}


def check_base(header: Header, architecture: str, fingerprint: str) -> str | None:
    """Whether a concept fits a base: a warning for another checkpoint, ``ValueError`` for another architecture."""
    if header["architecture"] != architecture:
        learned = f"concept {header['name']!r} was learned on {header['architecture']}"
        if said := EARLIER.get(header["architecture"]):
            raise ValueError(f"{learned}, {said}: learn it again; Doodle's own ten come anew in a bank of another name")
        raise ValueError(f"{learned}, this model is {architecture}: load its base")
    if header["fingerprint"] and header["fingerprint"] != fingerprint:
        return f"concept {header['name']!r} was learned on another checkpoint of {architecture}: likeness may suffer"
    return None
