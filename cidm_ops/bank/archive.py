"""The file of a compressed bank: ``<bank>.compressed.safetensors``, written in one piece and checked as a whole.

Per layer the bases ``<layer>.U`` and ``<layer>.V`` and all cores end to end, ``.cu`` and ``.cd``; token rows and residuals in float32 and
previews as they were; and a table, zipped JSON, that says whose numbers lie where and holds the headers.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..file_fault import why_unreadable
from ..lowrank import LowRank
from ..models.registry import family_of
from .bank import Bank, alike
from .compress import DTYPES, Compressed, Layer, compress
from .concept import Concept
from .concept_file import checksum, save_concept
from .files import check_replaceable, write_atomically
from .formats import packed
from .header import ABOUT, check_name, wrong_in
from .lock import writing
from .manage import contents

FORMAT = 2  # with residuals of Infusion in it, else 1
SUFFIX = ".compressed.safetensors"
TEXTS = ("name", "class_word", "words", "architecture", "fingerprint", "task", "training", "token_layers", "triggers", "about")
TUPLES = ("words", "token_layers", "triggers")
LARGEST = 1 << 28  # bytes of the table, unzipped


def compress_bank(bank: Bank, file: Path | None = None, tolerance: float = 0.05, rank: int = 0, dtype: str = "float32") -> tuple[Path, str]:
    """Compress a bank into one file, beside its folder unless told; returns the file and a report of size and error.

    Raises ``ValueError`` if the bank is empty, a file in it damaged, or the file is there and no compressed bank.
    """
    concepts = bank.concepts()
    if not concepts:
        raise ValueError(f"bank {bank.folder} has no concepts: there is nothing to compress")
    small = compress(concepts, tolerance, rank, dtype)
    file = file or bank.folder.with_name(bank.folder.name + SUFFIX)
    check_replaceable(file, "cidm.bank")
    save_compressed(small, file)
    before, after = sum(bank.file(name).stat().st_size for name in bank.names), file.stat().st_size
    tokens = sum(4 * t.numel() for c in concepts for t in c.tokens.values())
    worst = max(small.errors, key=small.errors.__getitem__)
    lines = [
        f"{len(concepts)} concepts: {before / 1e6:.2f} MB in files, {after / 1e6:.2f} MB compressed ({before / after:.2f} times smaller)",
        f"largest error {small.errors[worst]:.4f} (<{worst}>), largest bound {max(small.bounds.values()):.4f} of what was learned",
        f"bases on {sum(x is not None for b in small.bases.values() for x in (b.up, b.down))} of {2 * len(small.bases)} sides of layers; "
        f"token rows are kept exactly, {100 * tokens / after:.1f} % of the file",
    ]
    return file, "\n".join(lines)


def save_compressed(compressed: Compressed, file: Path) -> None:
    """Write atomically."""
    state: dict[str, Tensor] = {}
    for name, basis in compressed.bases.items():
        cores = [c.all_factors[name] for c in compressed.concepts if name in c.all_factors]
        state[f"{name}.cu"] = torch.cat([f.up.flatten() for f in cores])
        state[f"{name}.cd"] = torch.cat([f.down.flatten() for f in cores])
        state |= {f"{name}.{key}": rows for key, rows in (("U", basis.up), ("V", basis.down)) if rows is not None}
    for encoder in dict.fromkeys(e for c in compressed.concepts for e in c.tokens):
        state[f"tokens.{encoder}"] = torch.cat([c.tokens[encoder].float().flatten() for c in compressed.concepts if encoder in c.tokens])
    residuals = [r.float() for c in compressed.concepts for r in c.residuals.values()]
    if residuals:
        state["residuals"] = torch.cat(residuals)
    state["previews"] = _bytes(b"".join(c.preview for c in compressed.concepts))
    state["table"] = _bytes(zlib.compress(json.dumps([_entry(c, compressed) for c in compressed.concepts]).encode(), 9))
    header = {"format": FORMAT if residuals else 1, "tolerance": compressed.tolerance, "rank": compressed.rank, "dtype": compressed.dtype}
    metadata = {"cidm.bank": json.dumps(header)}
    metadata["cidm.sha256"] = checksum({"cidm": metadata["cidm.bank"]}, state)
    write_atomically(packed(state, metadata), file)


def _entry(c: Concept, compressed: Compressed) -> dict[str, Any]:
    def shapes(factors: Any) -> list[Any]:
        return [[name, list(f.up.shape), list(f.down.shape), list(f.kernel)] for name, f in factors.items()]

    return {
        **{key: getattr(c, key) for key in TEXTS},
        "factors": shapes(c.factors),
        "text_factors": shapes(c.text_factors),
        "tokens": {encoder: list(t.shape) for encoder, t in c.tokens.items()},
        "residuals": [[layer, len(r)] for layer, r in c.residuals.items()],
        "preview": len(c.preview),
        "error": compressed.errors[c.name],
        "bound": compressed.bounds[c.name],
    }


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)


def load_compressed(file: Path) -> Compressed:
    """Read a compressed bank. Raises ``ValueError`` naming the file if it is damaged, newer or another kind of file."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no compressed bank {file}: `cidm bank compress` makes one")
    wrong = f"{file.name}: damaged compressed bank ({{}}): restore it from a copy"
    try:
        with safe_open(file, "pt") as f:
            metadata = f.metadata() or {}
            if "cidm.bank" not in metadata:
                raise ValueError(
                    f"{file.name}: not a compressed bank (metadata key 'cidm.bank' is missing): make one with `cidm bank compress`"
                )
            state = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 -- an open file, not a dict
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(wrong.format(why_unreadable(file))) from error
    try:
        header = json.loads(metadata["cidm.bank"])
        version = int(header.pop("format"))
        if version <= FORMAT and metadata.get("cidm.sha256") == checksum({"cidm": metadata["cidm.bank"]}, state):
            table = json.loads(zlib.decompressobj().decompress(state["table"].numpy().tobytes(), LARGEST))
            return _read(header, table, state)
    except ValueError as error:
        raise ValueError(wrong.format(str(error)[:300])) from error
    except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError, RecursionError, MemoryError, zlib.error) as error:
        raise ValueError(wrong.format(repr(error)[:300])) from error
    if version > FORMAT:
        raise ValueError(f"{file.name}: written in format {version}, this version reads up to {FORMAT}: update the pack")
    raise ValueError(wrong.format("its contents are not what was written"))


def _read(header: dict[str, Any], table: list[dict[str, Any]], state: dict[str, Tensor]) -> Compressed:
    check_table(header, table)
    check_tensors(state)
    place: dict[str, int] = {}

    def take(key: str, shape: Sequence[int]) -> Tensor:
        begin = place.get(key, 0)
        place[key] = begin + prod(shape)
        if key not in state or place[key] > state[key].numel():
            raise ValueError(f"{key} has fewer numbers than its table says")
        return state[key].flatten()[begin : place[key]].reshape(*shape).clone()

    def factors(entries: list[Any]) -> dict[str, LowRank]:
        return {n: LowRank(take(f"{n}.cu", up), take(f"{n}.cd", down), tuple(kernel)) for n, up, down, kernel in entries}

    def texts(entry: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(entry[key]) if key in TUPLES else entry[key] for key in TEXTS}

    concepts = [
        Concept(
            **texts(entry),
            factors=factors(entry["factors"]),
            text_factors=factors(entry["text_factors"]),
            tokens={encoder: take(f"tokens.{encoder}", shape) for encoder, shape in entry["tokens"].items()},
            preview=take("previews", [entry["preview"]]).numpy().tobytes(),
            residuals={layer: take("residuals", [width]) for layer, width in entry.get("residuals", [])},
        )
        for entry in table
    ]
    bases = {key[:-3]: Layer(state.get(f"{key[:-3]}.U"), state.get(f"{key[:-3]}.V")) for key in state if key.endswith(".cu")}
    for concept in concepts:
        for name, core in concept.all_factors.items():
            check_core(name, core, bases[name])
    errors, bounds = ({entry["name"]: entry[key] for entry in table} for key in ("error", "bound"))
    return Compressed(bases, tuple(concepts), errors, bounds, **header)


def check_table(header: Any, table: Any) -> None:
    """Raises ``ValueError`` naming the concept and the field that is not what a concept file may have."""
    rules = {"tolerance": (int, float), "rank": int, "dtype": str}
    if set(header) != set(rules) or wrong_kind(header, rules) or header["dtype"] not in DTYPES:
        raise ValueError(f"its options are {str(header)[:100]}: expected tolerance, rank and dtype")
    if not isinstance(table, list) or not all(isinstance(entry, dict) for entry in table):
        raise ValueError("its table is no list of concepts")
    for entry in table:
        if wrong := wrong_in_entry(entry):
            raise ValueError(f"its table: concept {str(entry.get('name'))[:64]!r}: {wrong}")
    if len({entry["name"] for entry in table}) < len(table):
        raise ValueError("its table has two concepts of one name")


ENTRY: dict[str, Any] = {  # what is not in the header of a concept file
    "factors": list, "text_factors": list, "tokens": dict, "about": dict, "preview": int, "error": (int, float), "bound": (int, float),
}  # fmt: skip


def wrong_kind(entry: Mapping[str, Any], kinds: Mapping[str, Any]) -> str:
    """The first field that is not of its kind; "" if all are."""
    wrong = (key for key, kind in kinds.items() if not isinstance(entry.get(key), kind) or isinstance(entry[key], bool))
    return next((f"{key!r} is {str(entry.get(key))[:40]!r}" for key in wrong), "")


def wrong_in_entry(entry: Mapping[str, Any]) -> str:
    """The first field of a concept in the table that is not what it should be; "" if all are."""
    if wrong := wrong_kind(entry, ENTRY):
        return wrong
    layers = [part for key in ("factors", "text_factors") for part in entry[key]]
    residuals = entry.get("residuals", [])
    if wrong := _wrong_layers(layers) or _wrong_residuals(residuals):
        return wrong
    if wrong := wrong_in(_header_of(entry)):
        return wrong
    try:
        family_of(entry["architecture"])
    except ValueError as error:
        return str(error)
    if len({part[0] for part in layers}) < len(layers) or len({layer for layer, _ in residuals}) < len(residuals):
        return "it has a layer twice"
    if wrong := _wrong_tokens(entry):
        return wrong
    if wrong := _wrong_about(entry["about"]):
        return wrong
    return "" if entry["preview"] >= 0 else f"'preview' is {entry['preview']}"


def _header_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The header that the concept's own file would have, as far as an entry of the table says it."""
    residuals = entry.get("residuals", [])
    return {key: entry.get(key) for key in TEXTS} | {
        "layers": [part[0] for part in entry["factors"]],
        "text_layers": [part[0] for part in entry["text_factors"]],
        "token_shapes": entry["tokens"],
        "method": "infusion" if residuals else "cidm",
        "residuals": [layer for layer, _ in residuals],
    }


def _wrong_about(about: Mapping[str, Any]) -> str:
    """A sentence on texts that are not those of a concept's card; "" if they are."""
    if all(key in ABOUT and isinstance(text, str) for key, text in about.items()):
        return ""
    return f"'about' is {str(about)[:40]!r}, expected texts for {', '.join(ABOUT)}"


def _wrong_layers(layers: Sequence[Any]) -> str:
    """The first of the layers that is not ``[name, shape of up, shape of down, kernel]`` with one rank; "" if all are."""
    for part in layers:
        fits = isinstance(part, list) and len(part) == 4 and isinstance(part[0], str) and sizes(part[1], 2) and sizes(part[2], 2)
        if not (fits and (part[3] == [] or sizes(part[3], 2)) and part[1][1] == part[2][0]):
            return f"'factors' has {str(part)[:100]!r}, expected a layer, the shapes of up and down, and a kernel"
    return ""


def _wrong_residuals(residuals: Any) -> str:
    """A sentence on residuals that are no list of ``[layer, width]``; "" if they are one."""
    if isinstance(residuals, list) and all(isinstance(r, list) and len(r) == 2 and sizes(r[1:], 1) for r in residuals):
        return ""
    return f"'residuals' is {str(residuals)[:100]!r}, expected layers and widths"


def _wrong_tokens(entry: Mapping[str, Any]) -> str:
    """The first encoder whose rows are not those of the entry's words and layers; "" if all are."""
    for encoder, shape in entry["tokens"].items():
        if not (sizes(shape, 3) and shape[0] == len(entry["words"]) and max(entry["token_layers"], default=0) < shape[1]):
            return f"'tokens' has {encoder} {str(shape)[:40]} for {len(entry['words'])} words, or 'token_layers' other rows"
    return "'tokens' is empty, and it has words" if entry["words"] and not entry["tokens"] else ""


def sizes(shape: Any, count: int) -> bool:
    """Whether it is a shape of that many dimensions."""
    return isinstance(shape, list) and len(shape) == count and all(type(size) is int and size > 0 for size in shape)


def check_tensors(state: Mapping[str, Tensor]) -> None:
    """Raises ``ValueError`` naming a tensor that holds no finite numbers, or bytes that are none."""
    for key, tensor in state.items():
        if key in ("previews", "table"):
            fits = tensor.dtype == torch.uint8
        else:
            fits = tensor.is_floating_point() and bool(tensor.float().isfinite().all())
        if not fits or (key.endswith((".U", ".V")) and tensor.ndim != 2):
            raise ValueError(f"{key} is {tensor.dtype} {tuple(tensor.shape)}: expected finite numbers")


def check_core(name: str, core: LowRank, basis: Layer) -> None:
    """Raises ``ValueError`` if a core needs more of a basis than there is, or its columns are not those of its kernel."""
    rows = [(len(core.up), basis.up), (core.down.shape[1], basis.down)]
    if any(side is not None and count > len(side) for count, side in rows):
        raise ValueError(f"{name} has fewer directions than its table says")
    width = core.down.shape[1] if basis.down is None else basis.down.shape[1]
    if width % prod(core.kernel or (1,)):
        raise ValueError(f"{name} has {width} columns for a kernel of {core.kernel}")


def expand_into(file: Path, folder: Path) -> Bank:
    """Write the concepts of a compressed bank as files into a folder: the same bytes every time. What is there already is left.

    Raises ``ValueError`` if the folder has other concepts, or its disk takes two of their names for one.
    """
    concepts = {check_name(c.name): c for c in load_compressed(file).expand()}
    with writing(folder):
        now = Bank(folder)
        twins = [(a, b) for a, b in combinations(concepts, 2) if alike(a, b)]
        if twins and (folder / ".LOCK").exists():
            raise ValueError(f"{twins[0][0]!r} and {twins[0][1]!r} differ in case only, which {folder} takes for one: expand it elsewhere")
        for name in [*now.names, *now.damaged]:
            if name not in concepts or contents(now.get(name)) != contents(concepts[name]):
                raise ValueError(f"{folder} has another concept {name!r}: expand into a new folder, then merge the two banks")
        for name, c in concepts.items():
            if name not in now.headers:
                save_concept(c, now.file(name))
    return Bank(folder)
