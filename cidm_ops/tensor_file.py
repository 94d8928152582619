"""Files of tensors that others wrote: safetensors, and pickles through torch's safe loader. What is none is told by what it is.

Sizes that a file claims are compared with the file before they are believed, and nothing but tensors, texts and numbers is ever loaded.
"""

import json
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from warnings import catch_warnings, filterwarnings

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import file_kind
from .file_kind import kind_of

NUMBERED = "a layer's number says not which it is, so have the tool that wrote it (lora_diffusion) save it with diffusers' names"
HEADER = 100_000_000  # bytes of a safetensors header at most, as in its specification
HEAD = 4096  # bytes by which a file is known
LEAVES = 1_000_000  # entries of a pickle that are looked at
DEPTH = 12  # of mappings and lists in each other
AGAIN = "get it again"
HYPERNETWORK = (  # what stands beside the layers of a hypernetwork
    "step", "name", "layer_structure", "activation_func", "is_layer_norm", "weight_initialization", "use_dropout", "sd_checkpoint",
    "sd_checkpoint_name", "activate_output", "last_layer_dropout", "dropout_structure", "optional_info",
)  # fmt: skip
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
}  # fmt: skip

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


def read_tensors(file: Path, device: str = "cpu") -> tuple[Mapping[str, Any], dict[str, str]]:
    """Read what a safetensors file or a checkpoint of torch holds, and its metadata; on the device "meta" shapes alone, which reads no
    tensor.

    Raises ``FileNotFoundError``, and ``ValueError`` for a file that holds no tensors by name, or none that are whole: the text says what
    it is and what to do, and whoever called names the file.
    """
    file = Path(file)
    if not file.is_file():
        if file.exists():
            raise ValueError(f"{'a folder' if file.is_dir() else 'no ordinary file'}: expected a file of tensors")
        raise FileNotFoundError(f"there is no file {file}")
    size = file.stat().st_size
    with open(file, "rb") as f:
        head = f.read(HEAD)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 0 < length <= HEADER:
        return read_safetensors(file, size, device)
    if what := what_is(head, size):
        raise ValueError(what)
    return read_pickle(file, head, size, device), {}


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


def read_safetensors(file: Path, size: int, device: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file of ``size`` bytes. Raises ``ValueError``."""
    try:
        with safe_open(file, "pt") as f:
            keys = list(f.keys())
            if device == "meta":
                parts = {key: f.get_slice(key) for key in keys}
                state = {
                    key: torch.empty(p.get_shape(), dtype=TYPES.get(p.get_dtype(), torch.uint8), device=device) for key, p in parts.items()
                }
            else:
                state = {key: f.get_tensor(key) for key in keys}
            return state, f.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(cut_off(file, size) or f"a damaged safetensors file: {AGAIN}") from error


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


def read_pickle(file: Path, head: bytes, size: int, device: str) -> Mapping[str, Any]:
    """Read what a checkpoint of torch holds. Raises ``ValueError``; code in it is named and never run."""
    if head[:2] == b"PK":
        check_zip(file, size)
    try:
        with catch_warnings():
            filterwarnings("ignore")  # what cannot be read is refused below
            content = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # a broken file makes the reader fail in any way
        named = re.search(r"GLOBAL (\S+)", str(error))
        if code := named[1] if named else code_in(file):
            raise ValueError(f"it wants to run code ({code}): refused, and nothing was executed") from None
        raise ValueError(f"neither a safetensors file nor a checkpoint of torch that can be read: {AGAIN}") from error
    if isinstance(content, Mapping) and content and all(isinstance(key, int) for key in content if key not in HYPERNETWORK):
        raise ValueError("a hypernetwork of AUTOMATIC1111, which is no sum of weights: look for a LoRA of the same")
    if isinstance(content, list | tuple) and content and all(isinstance(entry, Tensor) for entry in content):
        raise ValueError(f"a list of {len(content)} tensors without names, as the first LoRAs were: {NUMBERED}")
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"it holds a {type(content).__name__}: expected tensors by name")
    for key, tensor in leaves(content):
        if isinstance(tensor, Tensor) and (wrong := wrong_with(tensor, size)):
            raise ValueError(f"{key[:80]} is {wrong}")
    return content


def check_zip(file: Path, size: int) -> None:
    """Raises ``ValueError`` for a zip that is no checkpoint of torch, or unpacks to more than it has."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"a cut-off download or a damaged archive: {AGAIN}") from error
    names = [entry.filename for entry in entries]
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        inside = f", {names[0][:80]!r} among them" if names else ""
        raise ValueError(f"a zip archive of {len(names)} files{inside}: unpack it and take the file in it")
    if any("/code/" in name for name in names):
        raise ValueError("a TorchScript program, which is not run: look for the weights of the same")
    if (claimed := sum(entry.file_size for entry in entries)) > 2 * size + HEAD:
        raise ValueError(f"its parts claim {claimed} bytes and it has {size}: torch packs nothing, so it is none of its checkpoints")


def wrong_with(tensor: Tensor, size: int) -> str:
    """Why a tensor of a file of ``size`` bytes cannot be what it says; "" for one that can."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        return "no plain tensor (sparse, nested or quantised): save it as a dense one"
    if tensor.numel() * tensor.element_size() > max(size, HEAD):
        return f"{tuple(tensor.shape)}, more than the file of {size} bytes holds: {AGAIN}"
    return ""


def leaves(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """List what lies in mappings and lists, each by its names in a row: ``state_dict.unet.weight``. Raises ``ValueError`` if too much."""
    todo, count = [(name, content, depth)], 0
    while todo:
        name, value, depth = todo.pop()
        if isinstance(value, Mapping | list | tuple) and depth < DEPTH:
            inside = value.items() if isinstance(value, Mapping) else enumerate(value)
            todo += [(f"{name}.{key}" if name else str(key), entry, depth + 1) for key, entry in inside][::-1]
        else:
            yield name, value
        if (count := count + 1) + len(todo) > LEAVES:
            raise ValueError(f"it holds more than {LEAVES} entries: expected a file of tensors")


def tensors_in(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a file by name, those in mappings and lists with the names of these before it."""
    return {key: value.detach() for key, value in leaves(content) if isinstance(value, Tensor)}


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
