"""What was trained, as pieces of at most 15 MiB that travel alone: an archive without compression, cut into files."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ...bank.files import write_atomically

LARGEST = 15 * 2**20
NAME = "doodle-{}-of-{}.part"


def cut(files: Iterable[Path], into: Path, largest: int = LARGEST) -> list[Path]:
    """Write the files, by their names, as pieces into a folder; pieces of an earlier cut go. Returns the pieces."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes())
    content = data.getvalue()
    count = -(-len(content) // largest)
    pieces = [into / NAME.format(i + 1, count) for i in range(count)]
    for old in pieces_in(into):
        if old not in pieces:
            old.unlink()
    for i, piece in enumerate(pieces):
        write_atomically(content[i * largest : (i + 1) * largest], piece)
    return pieces


def join(pieces: Path, into: Path, known: Iterable[str]) -> list[Path]:
    """Write the files that are in the pieces of a folder; only those of a ``known`` name. Returns them.

    Raises ``FileNotFoundError`` where a piece is missing, ``ValueError`` where they are damaged or hold anything else.
    """
    found = pieces_in(pieces)
    if not found:
        raise FileNotFoundError(
            f"{pieces}: no pieces in it: expected {NAME.format(1, 'N')} and so on, as `cidm doodle train --pieces` writes"
        )
    count = int(found[0].stem.rpartition("-")[2])
    if missing := [name for i in range(count) if not (pieces / (name := NAME.format(i + 1, count))).is_file()]:
        raise FileNotFoundError(f"{pieces} lacks {', '.join(missing)}: bring all {count} pieces of one training")
    content = b"".join((pieces / NAME.format(i + 1, count)).read_bytes() for i in range(count))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{pieces}: its pieces are damaged, or of different trainings ({error}): bring them again") from error
    if strange := sorted(set(parts) - set(known)):
        raise ValueError(f"{pieces} holds {strange[0]!r}, which is no part of a Doodle: bring the pieces again")
    for name, data in parts.items():
        write_atomically(data, into / name)
    return [into / name for name in parts]


def pieces_in(folder: Path) -> list[Path]:
    """The pieces that lie in a folder."""
    return sorted(folder.glob(NAME.format("*", "*")))
