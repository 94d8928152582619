"""Keeping a bank in order: one operation each, under the bank's lock, returning the bank reopened.

Every file is written atomically and no operation leaves a state that a bank does not open in. One that was killed half way is
finished by doing it again; none that is refused has changed anything.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image

from .bank import TRAINING, Bank, alike, claims
from .concept import Concept
from .concept_file import load_concept, lora_state, residual_state, save_concept
from .files import clear_parts, parts
from .header import ABOUT, check_name, read_preview
from .index import INDEX
from .lock import writing
from .thumbnails import thumbnail, wrong_with

EXISTING = ("refuse", "skip", "replace")


def reopen(bank: Bank, name: str) -> Bank:
    """Return the bank as it is now, for a writer who holds the lock. Raises ``KeyError`` if it has no such concept, whole or damaged."""
    now = Bank(bank.folder)
    if name not in now.headers and name not in now.damaged:
        raise KeyError(f"no concept {name!r} in bank {now.folder}: it has {', '.join(now.names) or 'none yet'}")
    return now


def remove(bank: Bank, name: str) -> Bank:
    """Delete a concept, whole or damaged; the others keep their places."""
    with writing(bank.folder):
        (reopen(bank, name).folder / f"{name}.safetensors").unlink()
    return Bank(bank.folder)


def rename(bank: Bank, old: str, new: str) -> Bank:
    """Give a concept another name; its words ``<old.1>`` become ``<new.1>``. Raises ``ValueError`` if the name or a word is taken.

    The file is moved before it is written again, so that the concept is there at every instant, and once.
    """
    check_name(new)
    with writing(bank.folder):
        now = reopen(bank, old)
        if new != old and (new in now.headers or new in now.damaged):
            raise ValueError(f"the bank {now.folder.name!r} has a concept {new!r} already: choose another name or remove that one")
        file = now.folder / f"{old}.safetensors"
        named = renamed(load_concept(file), new)
        now.headers.pop(old, None)
        now.damaged.pop(old, None)
        now.check_fits(named)
        file.rename(now.file(new))
        try:
            save_concept(named, now.file(new))
        except OSError:
            now.file(new).rename(file)
            raise
    return Bank(bank.folder)


def renamed(concept: Concept, new: str) -> Concept:
    """Return a concept under another name, its words with it."""
    before = f"<{concept.name}."
    return replace(concept, name=new, words=tuple(f"<{new}.{w[len(before) :]}" if w.startswith(before) else w for w in concept.words))


def move(bank: Bank, name: str, place: int) -> Bank:
    """Put a concept at a place in the order, from 1. Only files whose task number changes are written.

    Raises ``ValueError`` for a place that the bank does not have.
    """
    with writing(bank.folder):
        now = reopen(bank, name)
        now.get(name)
        if not 1 <= place <= len(now.names):
            raise ValueError(f"place {place}: expected 1 to {len(now.names)}, the concepts in bank {now.folder.name!r}")
        tasks = {n: header["task"] for n, header in now.headers.items()}
        order = [n for n in now.names if n != name]
        order.insert(place - 1, name)
        wanted: dict[str, int] = {}
        for n, task in zip(order, sorted(tasks.values()), strict=True):
            wanted[n] = max(task, 1 + max(wanted.values(), default=0))
        up = [n for n in reversed(order) if wanted[n] > tasks[n] and n != name]
        down = [n for n in order if wanted[n] < tasks[n] and n != name]
        for n in [*up, *down, *([name] if wanted[name] != tasks[name] else [])]:  # at no instant do two others change places
            save_concept(replace(now.get(n), task=wanted[n]), now.file(n))
    return Bank(bank.folder)


def merge(bank: Bank, other: Bank, existing: str = "refuse") -> Bank:
    """Copy the concepts of another bank behind ours, in their order. ``existing`` says what becomes of names that we have too.

    Everything is read and checked before the first is written. Raises ``ValueError`` for another architecture, a word that is taken,
    a damaged file, and a name that both have if that is to be refused.
    """
    if existing not in EXISTING:
        raise ValueError(f"existing {existing!r}: expected one of {', '.join(EXISTING)}")
    if other.folder.resolve() == bank.folder.resolve():
        raise ValueError(f"bank {bank.folder.name!r} cannot be merged with itself: name another")
    if other.damaged:
        raise ValueError(next(iter(other.damaged.values())))
    with writing(bank.folder):
        now = Bank(bank.folder)
        both = [name for name in other.names if name in now.headers or name in now.damaged]
        if both and existing == "refuse":
            raise ValueError(f"both banks have {', '.join(both[:20])}: rename them, or say whether to skip or replace")
        coming = [name for name in other.names if name not in both or existing == "replace"]
        checked = Bank(bank.folder)
        for name in coming:
            concept = other.get(name)
            checked.check_fits(concept)
            checked.headers[name] = other.headers[name]
        task = max((header["task"] for header in now.headers.values()), default=0)
        for name in coming:
            ours = now.headers[name]["task"] if name in now.headers else None
            task += ours is None
            save_concept(replace(other.get(name), task=ours or task), now.file(name))
    return Bank(bank.folder)


def duplicates(bank: Bank) -> list[list[str]]:
    """Names under which the same factors and token rows lie, in groups of two and more. Damaged files take no part."""
    groups: dict[str, list[str]] = {}
    for name in bank.names:
        with suppress(KeyError, ValueError):
            groups.setdefault(contents(bank.get(name)), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def contents(concept: Concept) -> str:
    """SHA-256 of the factors, token rows and residuals alone: the same under another name."""
    state = lora_state(concept) | residual_state(concept) | {f"tokens.{encoder}": rows for encoder, rows in concept.tokens.items()}
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key} {tuple(state[key].shape)}".encode() + state[key].float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def verify(bank: Bank) -> dict[str, str]:
    """Say what is wrong with each concept, "" if nothing is: every file is read as a whole, every word has one owner, and no two names
    differ in case only.
    """
    now = Bank(bank.folder)
    found, owner = dict[str, str](), dict[str, str]()
    for name, header in now.headers.items():
        if twin := next((n for n in now.names if alike(n, name)), ""):
            found[name] = f"its name differs from {twin!r} in case only, which is the same file on Windows and macOS: rename one"
            continue
        try:
            now.get(name)
            taken = sorted(w for w in claims(header["words"], header["triggers"]) if owner.setdefault(w, name) != name)
            found[name] = f"the word {taken[0]} belongs to concept {owner[taken[0]]!r} already: rename one" if taken else ""
        except KeyError:
            continue  # someone renamed or removed it meanwhile, and may have brought it back since
        except ValueError as error:
            if now.file(name).exists():  # else someone removed it meanwhile
                found[name] = str(error.args[0])
    return found | now.damaged


def remarks(bank: Bank) -> list[str]:
    """Say what is no damage and worth knowing: concepts with the same contents, parts that writers left, thumbnails that are none."""
    said = [f"{' and '.join(names)} have the same contents" for names in duplicates(bank)]
    said += [f"{file.relative_to(bank.folder)} was left by a writer that was interrupted: `repair` clears it" for file in leftovers(bank)]
    for name in bank.names:
        with suppress(KeyError, ValueError):
            if wrong := wrong_with(read_preview(bank.file(name))):
                said.append(f"{name}: its thumbnail is not shown: {wrong}")
    return said


def leftovers(bank: Bank) -> list[Path]:
    """Parts of files that writers are at, or left when they were interrupted: of concepts, and of the states of runs."""
    return [*parts(bank.folder), *parts(bank.folder / TRAINING)]


def repair(bank: Bank) -> Bank:
    """Drop the index and what interrupted writers left, of concepts and of runs, and finish a renaming that was cut short.

    Damaged files stay, and are named. Nothing of it needs room on the disk but the renaming.
    """
    with writing(bank.folder):
        for folder in (bank.folder, bank.folder / TRAINING):
            clear_parts(folder)
        (bank.folder / INDEX).unlink(missing_ok=True)
        now = Bank(bank.folder)
        wrong = verify(now)
        for name, header in now.headers.items():
            if header["name"] != name and not wrong[name]:
                save_concept(renamed(load_concept(now.file(name)), name), now.file(name))
    return Bank(bank.folder)


def describe(bank: Bank, name: str, about: Mapping[str, str], preview: Image.Image | None = None) -> Bank:
    """Set ``author``, ``license`` or ``description``, and the thumbnail; what is not given stays, an empty text goes.

    Raises ``ValueError`` for a field that does not exist.
    """
    if unknown := set(about) - set(ABOUT):
        raise ValueError(f"{sorted(unknown)[0]!r} cannot be set: expected {', '.join(ABOUT)}")
    with writing(bank.folder):
        now = reopen(bank, name)
        concept = now.get(name)
        texts = {key: text for key, text in {**concept.about, **about}.items() if text}
        small = thumbnail(preview) if preview else concept.preview
        if (texts, small) != (concept.about, concept.preview):
            save_concept(replace(concept, about=texts, preview=small), now.file(name))
    return Bank(bank.folder)
