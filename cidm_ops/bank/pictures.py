"""Pictures of a concept, kept beside it in its bank for models that read pictures: ``references/<name>/``, and ``about.json`` there.

They are private: a concept's file has none of them, and no export, archive or compressed bank takes them along. ``about.json`` says which
files count, so whatever interrupts a writer leaves the pictures of before, or those of after, and at most files that nobody counts.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from .bank import Bank
from .files import write_atomically
from .lock import writing
from .picture_file import in_colours, open_picture

FOLDER, ABOUT = "references", "about.json"
MOST, SIDE = 8, 1024  # pictures of a concept, and pixels of the longer side
SOURCES = ("photo", "generated")


@dataclass(frozen=True)
class KeptPicture:
    """A picture of a concept: its file, what it shows in words, whether it is a photo or was generated, and its mask, if it has one."""

    file: Path
    caption: str = ""
    source: str = SOURCES[0]
    mask: Path | None = None

    def open(self) -> Image.Image:
        """The picture in RGB. Raises ``ValueError`` naming a file that cannot be read."""
        return _open(self.file)

    def open_mask(self) -> Image.Image | None:
        """Where the concept is, in grey, or ``None`` for everywhere. Raises ``ValueError`` naming a file that cannot be read."""
        return None if self.mask is None else _open(self.mask).convert("L")


def _open(file: Path) -> Image.Image:
    try:
        return in_colours(open_picture(file))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{file}: {error}: keep the pictures of this concept anew") from error


def place_of(bank: Bank, name: str) -> Path:
    """The folder of a concept's pictures. Raises ``KeyError`` for a concept that the bank has not."""
    if name not in bank.headers:
        raise KeyError(f"no concept {name!r} in bank {bank.folder}: it has {', '.join(bank.names) or 'none yet'}")
    return bank.folder / FOLDER / name


def kept_pictures(bank: Bank, name: str) -> list[KeptPicture]:
    """The pictures that are kept of a concept, in order; none if there are none. Raises ``KeyError`` for a concept that the bank has not,
    and ``ValueError`` for an ``about.json`` that is none.
    """
    place = place_of(bank, name)
    try:
        listed = json.loads((place / ABOUT).read_text(encoding="utf-8"))["pictures"]
        return [_picture(place, entry) for entry in listed[:MOST]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{place / ABOUT} does not say which pictures are kept ({error}): keep them anew, or remove that folder"
        ) from error


def _picture(place: Path, entry: dict[str, Any]) -> KeptPicture:
    """A picture as ``about.json`` has it, whose files lie in the folder itself."""
    file, mask = str(entry["file"]), str(entry.get("mask", ""))
    if {file, mask or file} & {"", ".", ".."} or any(set(name) & {"/", "\\"} for name in (file, mask)):
        raise ValueError(f"{file!r} is no name of a file beside it")
    source = entry["source"] if entry.get("source") in SOURCES else SOURCES[0]
    return KeptPicture(place / file, str(entry.get("caption", "")), source, place / mask if mask else None)


def keep_pictures(
    bank: Bank,
    name: str,
    pictures: Sequence[Image.Image],
    captions: Sequence[str] = (),
    masks: Sequence[Image.Image | None] = (),
    source: str = SOURCES[0],
) -> list[KeptPicture]:
    """Keep pictures of a concept in the place of those that were kept; none takes them away. Returns what is kept.

    Raises ``KeyError`` for a concept that the bank has not, ``ValueError`` for more than ``MOST``, other numbers of captions or masks, and
    an unknown ``source``, ``OSError`` naming a file that cannot be written.
    """
    if len(pictures) > MOST:
        raise ValueError(f"{len(pictures)} pictures of <{name}>: at most {MOST} are kept, choose those that show it best")
    if source not in SOURCES:
        raise ValueError(f"source {source!r}: expected one of {', '.join(SOURCES)}")
    for what, given in (("captions", captions), ("masks", masks)):
        if given and len(given) != len(pictures):
            raise ValueError(f"{len(given)} {what} for {len(pictures)} pictures of <{name}>: give one for each, or none")
    with writing(bank.folder):
        place, entries = place_of(Bank(bank.folder), name), []
        for i, picture in enumerate(pictures):
            data = _encoded(picture.convert("RGB"), "JPEG")
            entry = {"file": _write(place, f"{i + 1:03d}", data, "jpg"), "sha256": hashlib.sha256(data).hexdigest(), "source": source}
            entry["caption"] = captions[i] if captions else ""
            if masks and (mask := masks[i]) is not None:
                entry["mask"] = _write(place, f"{i + 1:03d}-mask", _encoded(mask.convert("L"), "PNG"), "png")
            entries.append(entry)
        if entries:
            write_atomically(json.dumps({"pictures": entries}, indent=1).encode(), place / ABOUT)
        else:
            (place / ABOUT).unlink(missing_ok=True)
        clear_uncounted(place)
    return kept_pictures(Bank(bank.folder), name)


def _encoded(picture: Image.Image, kind: str) -> bytes:
    """A picture within ``SIDE`` pixels, as a file."""
    small = ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.LANCZOS) if max(picture.size) > SIDE else picture
    data = io.BytesIO()
    small.save(data, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return data.getvalue()


def _write(place: Path, number: str, data: bytes, ending: str) -> str:
    """Write a file whose name has a digest of it, so that it never takes the place of another that still counts."""
    name = f"{number}-{hashlib.sha256(data).hexdigest()[:8]}.{ending}"
    write_atomically(data, place / name)
    return name


def clear_uncounted(place: Path) -> None:
    """Remove what lies in a concept's folder of pictures and is not counted, and the folder itself if nothing is left."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        listed = json.loads((place / ABOUT).read_text(encoding="utf-8"))["pictures"] if (place / ABOUT).exists() else []
        counted = {ABOUT, *(entry["file"] for entry in listed), *(entry.get("mask", "") for entry in listed)}
        for file in place.iterdir():
            if file.name not in counted and file.is_file():
                file.unlink(missing_ok=True)
        if not listed:
            place.rmdir()


def move_pictures(folder: Path, old: str, new: str) -> None:
    """Have the pictures of one name in a bank's folder under another, for a writer who holds the lock. What the new name had goes."""
    before, after = folder / FOLDER / old, folder / FOLDER / new
    if before.is_dir() and old != new:
        shutil.rmtree(after, ignore_errors=True)
        before.rename(after)


def copy_pictures(source: Bank, name: str, folder: Path) -> None:
    """Bring a concept's pictures into another bank's folder, for a writer who holds the lock: ``about.json`` last."""
    pictures = kept_pictures(source, name)
    place = folder / FOLDER / name
    for picture in pictures:
        for file in (picture.file, picture.mask):
            if file is not None:
                write_atomically(file.read_bytes(), place / file.name)
    if pictures:
        write_atomically((source.folder / FOLDER / name / ABOUT).read_bytes(), place / ABOUT)
        clear_uncounted(place)


def remove_pictures(folder: Path, name: str) -> None:
    """Remove the pictures of a name from a bank's folder, for a writer who holds the lock."""
    place = folder / FOLDER / name
    if place.is_dir():
        (place / ABOUT).unlink(missing_ok=True)  # from here on none counts
        shutil.rmtree(place)


def nobodys_pictures(bank: Bank) -> list[str]:
    """Names in the folder of pictures that no concept of the bank has."""
    place = bank.folder / FOLDER
    return sorted(p.name for p in place.iterdir() if p.is_dir() and p.name not in bank.headers) if place.is_dir() else []


def say_pictures(bank: Bank, prompt: str, counts: dict[str, int]) -> str:
    """A prompt in plain words for a model that is given pictures, in which each concept stands as what some of them show: "the dog of
    picture 1", "the cat of pictures 2 and 3". ``counts`` says how many each has, in the order in which the model gets them.
    """
    said, first = {}, 1
    for name, count in counts.items():
        numbers = [str(first + i) for i in range(count)]
        listed = numbers[0] if count == 1 else f"{', '.join(numbers[:-1])} and {numbers[-1]}"
        said[name] = f"the {bank.headers[name]['class_word'] or name} of picture{'s' if count > 1 else ''} {listed}"
        first += count
    text = ""
    for piece, owner in bank.vocabulary.parts(prompt):
        if owner in said:
            text = _without_article(text) + said[owner]
        else:
            text += bank.headers[owner]["class_word"] if owner else piece
    return text


def _without_article(text: str) -> str:
    """A text without the article that it ends in."""
    for article in ("a ", "an ", "the ", "A ", "An ", "The "):
        if text.endswith(article) and not text[: -len(article)][-1:].isalpha():
            return text[: -len(article)]
    return text
