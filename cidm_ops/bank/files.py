"""How files are written: whole or not at all, and equal contents as equal bytes."""

import errno
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

ATTEMPTS = 5
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def packed(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose metadata stand in order: the same contents are the same bytes."""
    data = save(dict(state), dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


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


def write_picture(picture: Image.Image, file: Path) -> None:
    """Write a picture in the format of the file's ending. Raises ``ValueError`` for an ending of none, ``OSError`` naming the file."""
    kind = Image.registered_extensions().get(file.suffix.lower())
    if kind not in ("PNG", "JPEG", "WEBP"):
        raise ValueError(f"{file} is no name of a picture: expected one that ends in .png, .jpg or .webp")
    data = io.BytesIO()
    picture.save(data, kind)
    write_atomically(data.getvalue(), file)


def write_array(array: np.ndarray, file: Path) -> None:
    """Write an array as NumPy keeps it. Raises ``OSError`` naming the file."""
    data = io.BytesIO()
    np.save(data, array)
    write_atomically(data.getvalue(), file)


def check_replaceable(file: Path, mark: str) -> None:
    """Raises ``ValueError`` if there is a file that we did not write, which would be lost: ours have ``mark`` in their metadata."""
    if not file.exists():
        return
    with suppress(SafetensorError, OSError, ValueError), safe_open(file, "pt") as f:
        if mark in (f.metadata() or {}):
            return
    raise ValueError(f"{file} is there and was made otherwise: remove it, or choose another place")
