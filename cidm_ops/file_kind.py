"""What a file is by its first bytes, whatever it is called: each reader says itself what to do about a kind that it does not take."""

import re

LFS, ANNEX, PAGE, SVG, PDF = "pointer of Git LFS", "pointer of git-annex", "web page", "drawing in SVG", "PDF"
ZIP, ARCHIVE, PICTURE, JXL, FILM = "ZIP archive", "archive", "picture", "picture in JPEG XL", "film or sound"
GGUF, HDF5, NUMPY, PROGRAM = "GGUF model", "HDF5 file", "NumPy array", "program"

# The first that fits is taken: a drawing with an XML prologue is no web page, and a picture in a container of films no film.
BEGINNINGS: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (kind, re.compile(pattern, re.DOTALL))
    for kind, pattern in (
        (LFS, rb"version https://git-lfs"),
        (ANNEX, rb"\s*(\.\./|/)*\.?git/annex/|/annex/objects/"),
        (SVG, rb"(?i)\s*(<\?xml[^>]*>)?\s*(<!--.*?-->\s*)*(<!doctype svg[^>]*>)?\s*<svg"),
        (PAGE, rb"(?i)\s*(<!--.*?-->\s*)*<(!doctype|html|head|body|title|script|meta|\?xml|error)\b"),
        (GGUF, rb"GGUF"),
        (JXL, rb"\xff\x0a|\0\0\0\x0cJXL "),
        (PICTURE, rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|....ftyp(avif|heic|heix|mif1)|II\*\0|MM\0\*"),
        (ZIP, rb"PK\x03\x04"),
        (ARCHIVE, rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd"),
        (HDF5, rb"\x89HDF"),
        (NUMPY, rb"\x93NUMPY"),
        (PDF, rb"%PDF"),
        (PROGRAM, rb"MZ|\x7fELF|\xcf\xfa\xed\xfe|#!"),
        (FILM, rb"OggS|ID3|fLaC|RIFF....(WAVE|AVI )|....ftyp"),
    )
)


def kind_of(head: bytes) -> str:
    """Tell which kind a file that begins with ``head`` is; "" for none of these."""
    return next((kind for kind, pattern in BEGINNINGS if pattern.match(head)), "")
