"""The one place where a picture is opened that somebody brings: its kind and size are looked at before anything is decoded.

It comes out upright and with 8 bits a channel, whatever a camera, a scanner or a depth tool wrote.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO
from warnings import catch_warnings, simplefilter

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin

from .. import file_kind
from ..file_kind import kind_of
from ..text_file import open_ordinary

MOST = 178_000_000  # pixels: what Pillow reads at most
SCALED = 6  # times as many has a JPEG at most that is decoded at a smaller scale
# What Pillow decodes itself and knows by its first bytes. Others start programs (EPS), need more files, or are taken for anything (TGA).
FORMATS = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "PSD", "QOI", "SGI", "TIFF", "WEBP",
)  # fmt: skip
HEIC = "convert it to JPEG, or install pillow-heif"
CONVERT = {".heic": HEIC, ".heif": HEIC, ".hif": HEIC, ".avif": "convert it to JPEG, or install a newer Pillow"}
BRANDS = {b"hei": ("HEIC", ".heic"), b"mif": ("HEIC", ".heic"), b"avi": ("AVIF", ".avif")}  # the ninth to eleventh byte of a file
# What to do about files of other kinds that come under the name of a picture.
ADVICE = {
    file_kind.LFS: "it is a pointer of Git LFS, not the picture: run `git lfs pull`",
    file_kind.ANNEX: "it is a pointer of git-annex, not the picture: run `git annex get`",
    file_kind.PAGE: "it is a web page, not a picture: download it again",
    file_kind.SVG: "it is a drawing in SVG: export it as PNG",
    file_kind.JXL: "it is a picture in JPEG XL: convert it to JPEG or PNG",
    file_kind.ZIP: "it is a ZIP archive: unpack it",
    file_kind.ARCHIVE: "it is an archive: unpack it",
    file_kind.PDF: "it is a PDF: export it as PNG",
}


@cache
def suffixes() -> frozenset[str]:
    """Endings of the names of pictures that can be read here, in lower case: what Pillow has, and HEIC with pillow-heif."""
    with suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in FORMATS and kind in Image.OPEN)


def convert(suffix: str) -> str:
    """Say what to do about a picture of a format that cannot be read here."""
    return CONVERT.get(suffix.lower(), "convert it to JPEG or PNG")


def open_picture(source: Path | bytes, side: int = 0, formats: Sequence[str] = FORMATS, most: int = MOST) -> Image.Image:
    """A picture of any mode with 8 bits a channel, upright. A JPEG is decoded smaller, with no side shorter than ``side``; 0: as it is.

    Raises ``ValueError`` that says why it cannot be read and what to do, ``FileNotFoundError``, and ``MemoryError`` where it does not fit.
    What names the file is up to the caller.
    """
    with open_for_pillow(source) as file:
        image = read_header(file, formats)
        check_size(image, side, most)
        upright = ImageOps.exif_transpose(image)
        upright.load()
        upright.info["pictures"] = 2 if image.format != "MPO" and getattr(image, "is_animated", False) else 1
        return in_8_bits(upright, bits_of(image))


def picture_size(file: Path) -> tuple[int, int]:
    """Width and height of a picture as it is stored; nothing is decoded. Raises what ``open_picture`` raises."""
    with open_for_pillow(file) as data:
        return read_header(data, FORMATS).size


@contextmanager
def open_for_pillow(source: Path | bytes) -> Iterator[BinaryIO]:
    """Open a file for Pillow, which says nothing while this is open. What it raises becomes ``ValueError`` that says why and what to do."""
    suffixes()
    with io.BytesIO(source) if isinstance(source, bytes) else open_ordinary(source) as file:
        try:
            with silence_warnings():
                yield file
        except MemoryError as error:
            raise MemoryError("there is not enough memory to read it") from error
        except Unreadable:
            raise
        except Exception as error:  # a broken picture makes the reader fail in any way
            head = b""
            with suppress(OSError, ValueError):
                file.seek(0)
                head = file.read(64)
            raise ValueError(identify(head) or "it cannot be read as a picture, as if it were damaged: repair or remove it") from error


class Unreadable(ValueError):
    """Why a picture is not read, found here and not by Pillow."""


@contextmanager
def silence_warnings() -> Iterator[None]:
    """Keep Pillow silent while this is open: what matters of its warnings is looked at here."""
    with catch_warnings():
        simplefilter("ignore")
        yield


def read_header(file: BinaryIO, formats: Sequence[str]) -> Image.Image:
    """A picture whose header is read and nothing more. That of a JPEG comes without Pillow's bound, as it can be decoded smaller."""
    head = file.read(2)
    file.seek(0)
    if head == b"\xff\xd8" and "JPEG" in formats:
        return JpegImagePlugin.JpegImageFile(file)
    try:
        return Image.open(file, formats=[f for f in formats if f in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise Unreadable("it has more pixels than a picture of use: make it smaller") from error


def check_size(image: Image.Image, side: int, most: int) -> None:
    """Has a JPEG decoded smaller. Raises ``Unreadable`` for a picture that would take too much memory."""
    width, height = image.size
    scaled = image.format == "JPEG" and side and not image.info.get("progressive") and width * height <= SCALED * most
    if side:
        image.draft("RGB", (side, side))
    if (image.width * image.height if scaled else width * height) > most:
        raise Unreadable(f"it has {width} x {height} pixels, at most {most // 10**6} million can be read: make it smaller")


def bits_of(image: Image.Image) -> int:
    """How many bits the values of one channel have where Pillow keeps them in 16: TIFF says so, all others fill them."""
    tags = getattr(image, "tag_v2", None)
    return int(tags.get(258, (16,))[0]) if image.format == "TIFF" and tags is not None else 16


def in_8_bits(image: Image.Image, bits: int = 16) -> Image.Image:
    """A picture of 16 bits or of real numbers as one of 8, where Pillow would cut off what is above 255; others as they are.

    Raises ``Unreadable`` for numbers whose white is unknown.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else float(2 ** min(bits, 16) - 1)
    if values.size and not (values.min() >= 0 and values.max() <= white):
        reach = f"from {values.min():g} to {values.max():g}"
        raise Unreadable(f"its values reach {reach}, white would be {white:g}: save it with 8 or 16 bits a channel")
    grey = Image.fromarray((values * (255 / white)).round().astype(np.uint8), "L")
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # one shade of all is see-through
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8), "L"))
    grey.info |= {key: value for key, value in image.info.items() if key != "transparency"}
    return grey


def in_colours(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """A picture in RGB or RGBA. Raises ``ValueError`` for colours that Pillow does not turn into these."""
    try:
        with silence_warnings():
            return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise ValueError(f"its colours are in {image.mode}: convert it to JPEG or PNG") from error


def identify(head: bytes) -> str:
    """Tell what a file is by its first bytes if it is no picture that can be read, and what to do about it; "" for what is not known."""
    if found := ADVICE.get(kind_of(head)):
        return found
    if head[4:8] == b"ftyp":
        if head[8:11] not in BRANDS:
            return "it is a film, or a picture in a format of films: convert it to JPEG or PNG"
        kind, suffix = BRANDS[head[8:11]]
        return "" if suffix in suffixes() else f"it is a picture in {kind}: {CONVERT[suffix]}"
    return "" if head else "it is empty: get it again, or remove it"
