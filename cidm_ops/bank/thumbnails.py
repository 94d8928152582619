"""The small picture in a concept file. Whoever wrote the file wrote it too: it is looked at before it is decoded, and may be none."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from .picture_file import FORMATS as PHOTOS
from .picture_file import MOST, in_colours, open_picture

THUMBNAIL = 128  # pixels of the longest side
LARGEST = 4096 * 4096  # pixels of a thumbnail that is decoded
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # of thumbnails; some others start programs (EPS)


def thumbnail(picture: Image.Image) -> bytes:
    """A picture as a JPEG whose longest side has 128 pixels."""
    data = io.BytesIO()
    ImageOps.contain(picture.convert("RGB"), (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).save(data, "JPEG", quality=88)
    return data.getvalue()


def decoded(source: Path | bytes, side: int, formats: Sequence[str] = FORMATS, largest: int = LARGEST) -> Image.Image:
    """A picture in RGB within a square of ``side`` pixels. Raises ``ValueError`` that says why it is none; sizes are read first."""
    picture = in_colours(open_picture(source, side, formats, largest))
    return ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)


def wrong_with(preview: bytes) -> str:
    """Why a thumbnail is not shown; "" for one that is, or none."""
    try:
        if preview:
            decoded(preview, THUMBNAIL)
    except ValueError as error:
        return str(error)
    return ""


def from_file(file: Path) -> Image.Image:
    """A person's picture for a thumbnail. Raises ``OSError`` or ``ValueError`` naming the file."""
    try:
        return decoded(file, THUMBNAIL, PHOTOS, MOST)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
