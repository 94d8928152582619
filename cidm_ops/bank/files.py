"""How files are written: whole or not at all, and equal contents as equal bytes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


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
    """Temporary file, fsync, rename, fsync of the folder. Raises ``OSError`` naming the file; what was there stays."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, file)
    except OSError as error:
        what = (
            f"{file} cannot be written ({error.strerror}): nothing is lost, what was there before is unchanged; make room and start again"
        )
        raise type(error)(error.errno, what) from error
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
