"""The small picture in a concept file. Whoever wrote the file wrote it too: it is looked at before it is decoded, and may be none."""

import io
from collections.abc import Sequence
from pathlib import Path
from warnings import catch_warnings, simplefilter

from PIL import Image, ImageOps

THUMBNAIL = 128  # pixels of the longest side
LARGEST = 4096 * 4096  # pixels of a thumbnail that is decoded
PHOTO = 178_000_000  # pixels of a person's own picture: what Pillow reads at most
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # of thumbnails; some others start programs (EPS)
PHOTOS = (*FORMATS, "AVIF", "BMP", "JPEG2000", "PPM", "TIFF")


def thumbnail(picture: Image.Image) -> bytes:
    """A picture as a JPEG whose longest side has 128 pixels."""
    data = io.BytesIO()
    ImageOps.contain(picture.convert("RGB"), (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).save(data, "JPEG", quality=88)
    return data.getvalue()


def decoded(source: Path | bytes, side: int, formats: Sequence[str] = FORMATS, largest: int = LARGEST) -> Image.Image:
    """A picture in RGB within a square of ``side`` pixels. Raises ``ValueError`` that says why it is none; sizes are read first."""
    Image.init()
    try:
        with catch_warnings():
            simplefilter("ignore", Image.DecompressionBombWarning)  # the size is looked at here
            with Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=[f for f in formats if f in Image.OPEN]
            ) as picture:
                if picture.width * picture.height > largest:
                    raise ValueError(f"it has {picture.width} x {picture.height} pixels")
                picture.draft("RGB", (side, side))
                return ImageOps.contain(ImageOps.exif_transpose(picture).convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    except Image.DecompressionBombError as error:
        raise ValueError("it has more pixels than a picture of use") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken picture makes the reader fail in any way
        raise ValueError(str(error) if "pixels" in str(error) else "it is no picture that can be read") from error


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
    if not file.is_file():
        raise FileNotFoundError(f"there is no picture {file}")
    try:
        return decoded(file, THUMBNAIL, PHOTOS, PHOTO)
    except ValueError as error:
        raise ValueError(f"{file}: {error}: expected a picture of at most {PHOTO // 10**6} megapixels") from error
