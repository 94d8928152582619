"""Tensors, pictures and arrays as the bytes of a file: equal contents are equal bytes."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from .files import write_atomically


def packed(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose metadata stand in order: the same contents are the same bytes."""
    data = save(dict(state), dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


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
