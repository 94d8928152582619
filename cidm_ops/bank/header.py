"""What a concept file says of its concept beside the tensors: its header, in the names that files have. It is read without torch."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast, get_type_hints

from safetensors import SafetensorError, safe_open

from ..file_fault import why_unreadable

FORMAT = 2
LOW_RANK, RESIDUALS = "cidm", "infusion"
METHODS = (LOW_RANK, RESIDUALS)
ABOUT = ("author", "license", "description")  # names of the ModelSpec standard
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
JPEG = "data:image/jpeg;base64,"


class Header(TypedDict):
    """A file says this of its concept beside the tensors; ``layers`` and the other lists name what its tensors are of.

    The last five came later: a file without them has none, and is a LoRA with words.
    """

    name: str
    class_word: str
    words: list[str]
    layers: list[str]
    architecture: str
    fingerprint: str
    task: int
    training: dict[str, Any]
    token_shapes: dict[str, list[int]]
    token_layers: list[int]
    text_layers: list[str]
    triggers: list[str]
    method: str
    residuals: list[str]


DEFAULTS: dict[str, Any] = {"token_layers": [], "text_layers": [], "triggers": [], "method": METHODS[0], "residuals": []}
FIELDS: dict[str, type] = {key: getattr(hint, "__origin__", hint) for key, hint in get_type_hints(Header).items()}


def check_name(name: str) -> str:
    """The name itself if it can be a file name and a ``<handle>``. Raises ``ValueError`` otherwise."""
    if not NAME.fullmatch(name):
        raise ValueError(f"concept name {name[:80]!r}: expected 1 to 64 letters, digits, '-' or '_', starting with a letter or digit")
    return name


def read_header(file: Path) -> Header:
    """The description of a concept without its tensors. Raises ``ValueError`` for a file that is not a whole concept."""
    return read_metadata(file)[0]


def read_preview(file: Path) -> bytes:
    """The small JPEG in a concept file, empty if it has none."""
    return preview_in(read_metadata(file)[1])


def preview_in(metadata: Mapping[str, str]) -> bytes:
    """The small JPEG in the metadata of a concept file; empty for none, and for what is no base64."""
    try:
        return base64.b64decode(metadata.get("modelspec.thumbnail", "").removeprefix(JPEG))
    except ValueError:
        return b""


def damaged(file: Path, what: object) -> ValueError:
    """Say of a file that it is no whole concept, why, and what to do."""
    return ValueError(f"{file.name}: damaged concept file ({what}): restore it from a copy or remove it from the bank")


def read_metadata(file: Path) -> tuple[Header, dict[str, str]]:
    """The header of a concept file and all its metadata. Raises ``ValueError`` for a file that is not a whole concept. Read as for NumPy
    it needs no torch.
    """
    try:
        with safe_open(file, "np") as f:
            metadata = f.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(file, why_unreadable(file)) from error
    if "cidm" not in metadata:
        raise ValueError(f"{file.name}: an ordinary safetensors file, not a concept (metadata key 'cidm' is missing): import it")
    try:
        header = json.loads(metadata["cidm"])
        version = int(header["format"])
        header = {**DEFAULTS, **header}
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise damaged(file, f"header: {error!r}") from error
    if version > FORMAT:
        raise ValueError(f"{file.name}: written in format {version}, this version reads up to {FORMAT}: update the pack")
    if wrong := wrong_in(header):
        raise damaged(file, f"header: {wrong}")
    return cast(Header, header), metadata


def wrong_in(header: Mapping[str, Any]) -> str:
    """The first field of a header that is not what it should be; empty if all are."""
    for key, kind in FIELDS.items():
        if not isinstance(header.get(key), kind) or isinstance(header[key], bool):
            return f"{key!r} is {str(header.get(key))[:40]!r}, expected {kind.__name__}"
    for key in ("words", "layers", "text_layers", "triggers", "residuals"):
        if not all(isinstance(entry, str) for entry in header[key]):
            return f"{key!r} has entries that are no text"
    if header["method"] not in METHODS:
        return f"'method' is {header['method'][:40]!r}, expected one of {', '.join(METHODS)}"
    if not all(type(row) is int and row >= 0 for row in header["token_layers"]):
        return "'token_layers' has entries that are no row"
    return "" if NAME.fullmatch(header["name"]) else f"'name' is {header['name'][:40]!r}"
