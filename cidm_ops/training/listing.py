"""What lies in a folder of pictures: which are read, with which captions and masks, and by name all that is not used, and why.

Only the folder itself, its folders ``N_anything`` and those of masks are looked at, and no file is opened, so a large tree costs nothing.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..bank.picture_file import CONVERT, convert, suffixes
from ..text_file import special

REPEATS = re.compile(r"(\d+)_")  # kohya: 10_dog is ten times what lies in it
MOST_REPEATS = 10_000
MASK_FOLDERS = ("mask", "masks")
MASK_ENDINGS = ("_mask", "-mask", ".mask", "_masklabel", "-masklabel")
TEXT = ".txt"
SYSTEM = ("desktop.ini", "ehthumbs.db", "thumbs.db")  # what Windows leaves in any folder of pictures
NOT_READ = "only folders such as 10_dog, and masks beside pictures, are read, so it is left out"
NAMED = 20  # names in one remark; more are counted


class Remarks:
    """Names of what is not used, by the reason for it."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, name: str, why: str) -> None:
        self.names.setdefault(why, []).append(name)

    def lines(self) -> list[str]:
        """One line for each reason."""
        return [f"{named(names)}: {why}" for why, names in self.names.items()]


def named(names: list[str]) -> str:
    """Names in one line, counted where they are many."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


@dataclass(frozen=True)
class Picture:
    """A picture of a folder: how often it counts, and the files of its caption and its mask."""

    file: Path
    repeats: int = 1
    caption: Path | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder in order, every file that they are read from, and what a person should know about the rest."""

    pictures: list[Picture]
    files: list[Path]
    remarks: list[str]


@dataclass
class Place:
    """The content of one folder: pictures, texts and masks by their names without ending, and the folders in it."""

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        return [*self.pictures, *self.texts, *self.masks]


def list_folder(folder: Path) -> Listing:
    """Lists what is learned from a folder: pictures with captions ``name.txt`` and masks ``name_mask.png`` or ``masks/name.png``, also
    those in folders ``N_anything``, which count N times.

    Raises ``FileNotFoundError`` for no folder and none with pictures, ``ValueError`` for one that cannot be read or counts too often.
    """
    remarks = Remarks()
    root = look_into(folder, folder, remarks)
    counts = {sub: int(match[1]) for sub in root.folders if (match := REPEATS.match(sub.name))}
    if many := next((sub for sub, count in counts.items() if count > MOST_REPEATS), None):
        raise ValueError(f"{many}: its pictures would count {counts[many]} times: expected at most {MOST_REPEATS}; rename the folder")
    for sub in (sub for sub, count in counts.items() if not count):
        remarks.add(sub.name, "the folder counts 0 times, so it is left out: give it a number of at least 1")
    places = {root.folder: 1} | {sub: count for sub, count in counts.items() if count}
    looked = {place: root if place == folder else look_into(place, folder, remarks) for place in places}
    for sub in (sub for found in looked.values() for sub in found.folders):
        if sub not in counts and sub.name.lower() not in MASK_FOLDERS:
            remarks.add(str(sub.relative_to(folder)), NOT_READ)
    masks = Masks(looked, folder, remarks)
    listed = []
    for place, found in looked.items():
        captions = captions_of(found, folder, remarks)
        listed += [Picture(p, places[place], captions.get(p), masks.of(p)) for p in found.pictures]
    masks.tell_the_rest()
    files = [file for found in looked.values() for file in found.files] + masks.elsewhere
    if not listed:
        left_out = "".join(f"; {line}" for line in remarks.lines())
        raise FileNotFoundError(f"{folder}: no pictures in it: expected 4 to 7 files such as photo1.jpg or photo1.png{left_out}")
    return Listing(listed, files, remarks.lines())


def list_references(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures of one folder, without what they are learned with, and what a person should know about the rest.

    Raises ``FileNotFoundError`` for no folder and ``ValueError`` for one that cannot be read.
    """
    remarks = Remarks()
    return look_into(folder, folder, remarks).pictures, remarks.lines()


def look_into(folder: Path, root: Path, remarks: Remarks) -> Place:
    """Sorts the files of one folder by what they are. Raises ``FileNotFoundError`` and ``ValueError`` naming the folder."""
    place = Place(folder)
    masks: list[Path] = []
    for entry in entries_of(folder):
        file, name, suffix = folder / entry.name, str((folder / entry.name).relative_to(root)), Path(entry.name).suffix.lower()
        mode = 0
        with suppress(OSError):  # a link to nothing, or in a circle
            mode = os.stat(file).st_mode
        what = special(mode) if mode else "a link to a file that is not there"
        if entry.name.startswith("."):
            if suffix in (*suffixes(), TEXT):
                remarks.add(name, "hidden files are no pictures, so they are left out")
        elif what == "a folder":
            place.folders.append(file)
        elif what:
            remarks.add(name, f"{what} and no ordinary file, so it is left out")
        elif suffix == TEXT:
            place.texts.append(file)
        elif suffix in suffixes():
            (masks if owner(file) else place.pictures).append(file)
        elif entry.name.lower() not in SYSTEM:
            picture = "" if suffix in CONVERT else "if it is one, "
            remarks.add(name, f"no picture that can be read here, so it is left out: {picture}{convert(suffix)}")
    stems = {file.stem for file in place.pictures}
    for file in masks:
        certain = file.stem.lower().endswith(MASK_ENDINGS[0]) or owner(file) in stems
        (place.masks if certain else place.pictures).append(file)
    place.pictures.sort()
    return place


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """List what is in a folder, in order. Raises ``FileNotFoundError`` and ``ValueError`` naming it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder: give a folder with 4 to 7 pictures")
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read ({error.strerror}): change that, or give another folder") from error


def owner(file: Path) -> str:
    """The name of the picture that a file is the mask of, by its own name; "" for a name of no mask."""
    stem = file.stem.lower()
    return next((file.stem[: -len(ending)] for ending in MASK_ENDINGS if stem.endswith(ending) and len(stem) > len(ending)), "")


def captions_of(place: Place, root: Path, remarks: Remarks) -> Mapping[Path, Path]:
    """The caption file of each picture that has one: ``photo1.txt``, or ``photo1.jpg.txt``."""
    texts = {file.stem: file for file in place.texts}
    found = {p: file for p in place.pictures if (file := texts.get(p.stem) or texts.get(p.name))}
    for file in place.texts:
        if file not in found.values():
            remarks.add(str(file.relative_to(root)), "there is no picture of that name beside it, so it is not read")
    for picture, file in list(found.items()):
        if not file.resolve().is_relative_to(root.resolve()):
            remarks.add(str(file.relative_to(root)), "a link out of the folder, so it is not read: put the caption itself there")
            del found[picture]
    if missing := [p for p in place.pictures if p not in found]:
        for p in missing:
            remarks.add(str(p.relative_to(root)), f"no caption file such as {missing[0].stem}{TEXT}, the class word stands alone")
    return found


class Masks:
    """The masks of all pictures: beside them, in a folder of masks beside them, or in one beside their folder (kohya)."""

    def __init__(self, looked: Mapping[Path, Place], root: Path, remarks: Remarks):
        self.looked, self.root, self.remarks = looked, root, remarks
        self.taken: set[Path] = set()
        self.folders: dict[Path, dict[str, list[Path]]] = {}
        for place in looked.values():
            self.folders[place.folder] = by_owner(place.folders, root, remarks)
        if REPEATS.match(root.name) and root.parent.is_dir():  # one of kohya's folders by itself
            beside = [root.parent / name for name in MASK_FOLDERS if (root.parent / name).is_dir()]
            wanted = {picture.stem for place in looked.values() for picture in place.pictures}
            shared = by_owner(beside, root.parent, Remarks())
            self.folders[root.parent] = {stem: files for stem, files in shared.items() if stem in wanted}

    @property
    def elsewhere(self) -> list[Path]:
        """All files in folders of masks."""
        return [file for found in self.folders.values() for files in found.values() for file in files]

    def of(self, picture: Path) -> Path | None:
        """The mask that belongs to a picture."""
        place = picture.parent
        near = [file for file in self.looked[place].masks if owner(file) == picture.stem] + self.folders[place].get(picture.stem, [])
        far = self.folders.get(place.parent, {}).get(picture.stem, [])
        if far and len(self.sharing(picture.stem, place.parent)) > 1:
            far = []  # whose it is cannot be told
        found = next(iter([*near, *far]), None)
        self.taken |= {found} if found else set()
        return found

    def sharing(self, stem: str, parent: Path) -> list[Path]:
        """The folders below ``parent`` that have a picture of that name."""
        return [f for f, place in self.looked.items() if f.parent == parent and any(p.stem == stem for p in place.pictures)]

    def tell_the_rest(self) -> None:
        """Names the masks that no picture took."""
        beside = [file for place in self.looked.values() for file in place.masks]
        for file in [*beside, *self.elsewhere]:
            if file not in self.taken:
                stem = owner(file) or file.stem
                have = [p for place in self.looked.values() for p in place.pictures if p.stem == stem]
                why = "there is no picture of that name" if not have else "its picture has another mask, or there are several of that name"
                self.remarks.add(
                    str(file.relative_to(self.root if file.is_relative_to(self.root) else self.root.parent)),
                    f"a mask that is not used, {why}: it lies beside its picture, as photo1_mask.png for photo1.jpg",
                )


def by_owner(folders: list[Path], root: Path, remarks: Remarks) -> dict[str, list[Path]]:
    """The files in folders of masks by the names of their pictures; a PNG goes first."""
    found: dict[str, list[Path]] = {}
    for folder in folders:
        if folder.name.lower() in MASK_FOLDERS:
            place = look_into(folder, root, remarks)
            for other in (*place.folders, *place.texts):
                remarks.add(str(other.relative_to(root)), NOT_READ)
            for file in sorted([*place.pictures, *place.masks], key=lambda f: (f.suffix.lower() != ".png", f)):
                found.setdefault(owner(file) or file.stem, []).append(file)
    return found


def read_from(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Every file that a folder's pictures are read from, with its size and time: changes when one of them does."""
    with suppress(OSError, ValueError):  # what is wrong is said where the pictures are read
        for file in list_folder(folder).files:
            with suppress(OSError):
                now = os.stat(file)
                yield str(file), now.st_size, now.st_mtime_ns
