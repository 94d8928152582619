"""A concept bank: a folder with one file per concept, in the order they were learned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..tokens import words_in
from .concept import Concept, check_name, load_concept, read_header, save_concept, write_atomically


class Bank:
    """The concepts of a folder. Opening reads headers only; a damaged file is set aside in ``damaged`` by name.

    A bank holds concepts of one architecture. Each file is written atomically and nothing else is: a bank survives a
    crash at any instant.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.headers: dict[str, dict[str, Any]] = {}
        self.damaged: dict[str, str] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                self.headers[file.stem] = read_header(file)
            except ValueError as error:
                self.damaged[file.stem] = str(error)
        self.headers = dict(sorted(self.headers.items(), key=lambda item: (item[1]["task"], item[0])))

    @property
    def names(self) -> list[str]:
        """Names in the order learned."""
        return list(self.headers)

    def file(self, name: str) -> Path:
        return self.folder / f"{check_name(name)}.safetensors"

    def get(self, name: str) -> Concept:
        """Load one concept. Raises ``KeyError`` for an unknown name, ``ValueError`` for a damaged file."""
        if name in self.damaged:
            raise ValueError(self.damaged[name])
        if name not in self.headers:
            raise KeyError(f"no concept {name!r} in bank {self.folder}: it has {', '.join(self.names) or 'none yet'}")
        return load_concept(self.file(name))

    def concepts(self) -> list[Concept]:
        """All concepts in the order learned. Raises ``ValueError`` if one is damaged: training and merging need them all."""
        if self.damaged:
            raise ValueError(next(iter(self.damaged.values())))
        return [self.get(name) for name in self.names]

    def before(self, name: str) -> list[str]:
        """Names of the concepts learned before ``name``: all of them if it is new. Raises ``ValueError`` if a file is damaged."""
        if self.damaged:
            raise ValueError(next(iter(self.damaged.values())))
        return self.names[: self.names.index(name)] if name in self.names else self.names

    def check_writable(self) -> None:
        """Raises ``ValueError`` if nothing can be written into the folder, before hours of training find that out."""
        try:
            write_atomically(b"", self.folder / ".writable")
            (self.folder / ".writable").unlink()
        except OSError as error:
            raise ValueError(
                f"the bank folder {self.folder} cannot be written to ({error.strerror}): change that or use another"
            ) from error

    def add(self, concept: Concept) -> "Bank":
        """Write a concept as the latest task and return the bank reopened. A concept of the same name is replaced in place.

        Raises ``ValueError`` if the bank's concepts are for another architecture or its words are taken.
        """
        for name, header in self.headers.items():
            if name == concept.name:
                continue
            if header["architecture"] != concept.architecture:
                raise ValueError(
                    f"concept {concept.name!r} is for {concept.architecture}, this bank for {header['architecture']}: use another bank"
                )
            if taken := set(header["words"]) & set(concept.words):
                raise ValueError(f"the word {sorted(taken)[0]} belongs to concept {name!r} already: choose another name")
        known = self.headers.get(concept.name)
        task = known["task"] if known else 1 + max((h["task"] for h in self.headers.values()), default=0)
        save_concept(replace(concept, task=task), self.file(concept.name))
        return Bank(self.folder)

    def expand(self, prompt: str) -> str:
        """Write out handles: ``<dog>`` becomes ``<dog.1> <dog.2>``.

        Raises ``ValueError`` for a word no concept has.
        """
        known = {word for header in self.headers.values() for word in header["words"]}
        for word in words_in(prompt):
            name = word[1:-1]
            if name in self.headers:
                prompt = prompt.replace(word, " ".join(self.headers[name]["words"]))
            elif word not in known:
                if name in self.damaged:
                    raise ValueError(self.damaged[name])
                have = ", ".join(f"<{n}>" for n in self.names) or "none yet"
                raise ValueError(f"no concept has the word {word}: bank {self.folder.name!r} has {have}")
        return prompt

    def spoken(self, prompt: str) -> list[str]:
        """Names of the concepts whose words occur in a prompt, in the order learned."""
        words = set(words_in(self.expand(prompt)))
        return [name for name, header in self.headers.items() if words & set(header["words"])]


def check_base(header: dict[str, Any], architecture: str, fingerprint: str) -> str | None:
    """Whether a concept fits a base: a warning for another checkpoint, ``ValueError`` for another architecture."""
    if header["architecture"] != architecture:
        raise ValueError(f"concept {header['name']!r} was learned on {header['architecture']}, this model is {architecture}: load its base")
    if header["fingerprint"] != fingerprint:
        return f"concept {header['name']!r} was learned on another checkpoint of {architecture}: likeness may suffer"
    return None
