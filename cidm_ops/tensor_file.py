"""Files of tensors that others wrote: safetensors, and pickles through torch's safe loader. What is none is told by what it is.

Sizes that a file claims are compared with the file before they are believed, and nothing but tensors, texts and numbers is ever loaded.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .file_fault import AGAIN, HEAD, HEADER, code_in, cut_off, what_is

NUMBERED = "a layer's number says not which it is, so have the tool that wrote it (lora_diffusion) save it with diffusers' names"
LEAVES = 1_000_000  # entries of a pickle that are looked at
DEPTH = 12  # of mappings and lists in each other
HYPERNETWORK = (  # what stands beside the layers of a hypernetwork
    "step", "name", "layer_structure", "activation_func", "is_layer_norm", "weight_initialization", "use_dropout", "sd_checkpoint",
    "sd_checkpoint_name", "activate_output", "last_layer_dropout", "dropout_structure", "optional_info",
)  # fmt: skip
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
}  # fmt: skip


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
