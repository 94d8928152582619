"""Why a file holds no tensors that can be read, and what to do: told by its first bytes and its size, without reading a tensor."""

import json
import pickletools
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from . import file_kind
from .file_kind import kind_of

HEADER = 100_000_000  # bytes of a safetensors header at most, as in its specification
HEAD = 4096  # bytes by which a file is known
AGAIN = "get it again"
CALL = re.compile(r"[\w.]+ [\w.]+")  # a module and a name in it, of a pickle

# What to do about files of other kinds; a ZIP archive may be a checkpoint of torch.
ADVICE = {
    file_kind.LFS: "a pointer of Git LFS, which stands for the real file: run `git lfs pull` in its repository",
    file_kind.ANNEX: "a pointer of git-annex, which stands for the real file: run `git annex get`",
    file_kind.PAGE: (
        "a web page: the download was answered with a page in its place, sign in or accept the terms there and take the file's own link"
    ),
    file_kind.GGUF: "a GGUF model: only safetensors files and checkpoints of torch are read",
    file_kind.PICTURE: "a picture: give the file of tensors",
    file_kind.JXL: "a picture: give the file of tensors",
    file_kind.SVG: "a drawing: give the file of tensors",
    file_kind.ARCHIVE: "an archive: unpack it and take the file in it",
    file_kind.HDF5: "an HDF5 file of Keras: only safetensors files and checkpoints of torch are read",
    file_kind.NUMPY: "a NumPy array: only safetensors files and checkpoints of torch are read",
    file_kind.PDF: "a PDF document: give the file of tensors",
    file_kind.PROGRAM: "a program: it is not run; give the file of tensors",
    file_kind.FILM: "a film or a sound: give the file of tensors",
}


def what_is(head: bytes, size: int) -> str:
    """Tell what a file that holds no tensors is, and what to do, by how it begins; "" for one that may hold some."""
    if not size:
        return f"an empty file: the download did not begin, {AGAIN}"
    if not head.strip(b"\0"):
        return f"it begins with {len(head)} bytes of nothing, as a download that is not done: {AGAIN}"
    if what := ADVICE.get(kind_of(head)):
        return what
    if b"\0" not in head and text_in(head):
        said = "a JSON text" if head.lstrip()[:1] in (b"{", b"[") else "a text"
        return f"{said}, no tensors: give the file of tensors"
    return ""


def text_in(head: bytes) -> bool:
    """Whether the head of a file is text that people write, and no pickle of protocol 0."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4 or len(head) < HEAD:
            return False
        text = head[: error.start].decode("utf-8")
    return (text.isprintable() or all(c.isprintable() or c in "\r\n\t" for c in text)) and not first_call(head)


def cut_off(file: Path, size: int) -> str:
    """Says of a safetensors file that cannot be read how much of it is there; "" if it is not shorter than its header says."""
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        text = f.read(min(length, HEADER))
    whole = 8 + length
    with suppress(ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
        whole += max(int(own["data_offsets"][1]) for key, own in json.loads(text).items() if key != "__metadata__")
    return f"a cut-off download, {size} of {whole} bytes: {AGAIN}" if size < whole else ""


def why_unreadable(file: Path) -> str:
    """Tell what a file is that cannot be read as safetensors, and what to do."""
    said = ""
    with suppress(OSError), open(file, "rb") as f:  # it may have gone since
        head, size = f.read(HEAD), file.stat().st_size
        whole = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER
        said = cut_off(file, size) if whole else what_is(head, size)
        said = said or ("an archive, as a checkpoint of torch is one: import it" if head[:2] == b"PK" else "")
    return said or "its header or its tensors cannot be read"


def code_in(file: Path) -> str:
    """The module and the name of what a pickle wants to call first; "" for a file that is none."""
    with open(file, "rb") as f:
        return first_call(f)


def first_call(data: bytes | BinaryIO) -> str:
    """The same of its bytes, told by its opcodes alone."""
    texts: list[str] = []
    with suppress(ValueError, MemoryError, OverflowError, IndexError, UnicodeDecodeError):
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                return str(argument).replace(" ", ".") if CALL.fullmatch(str(argument)) else ""
            if opcode.name == "STACK_GLOBAL":
                return ".".join(texts[-2:])
            if isinstance(argument, str):
                texts.append(argument)
    return ""
