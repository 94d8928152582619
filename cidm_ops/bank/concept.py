"""One concept in one safetensors file: an ordinary LoRA to every other tool, and its layer-wise tokens in the header; or residuals.

Factors carry kohya's names for diffusers modules with alpha equal to the rank, so every loader applies ``up @ down``
unscaled. Token tables are base64 fp32 in the metadata: a key that a LoRA loader does not know would make it warn.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..lowrank import LowRank
from ..models.family import family_of
from ..tokens import Table
from .files import packed, write_atomically

FORMAT = 2
RESIDUAL = "infusion."  # begins the keys of residuals
METHODS = ("cidm", "infusion")
ABOUT = ("author", "license", "description")  # names of the ModelSpec standard
FIELDS: dict[str, type] = {
    "name": str,
    "class_word": str,
    "words": list,
    "layers": list,
    "architecture": str,
    "fingerprint": str,
    "task": int,
    "training": dict,
    "token_shapes": dict,
    "token_layers": list,
    "text_layers": list,
    "triggers": list,
    "method": str,
    "residuals": list,
}
DEFAULTS: dict[str, Any] = {"token_layers": [], "text_layers": [], "triggers": [], "method": "cidm", "residuals": []}  # younger fields
JPEG = "data:image/jpeg;base64,"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Concept:
    """What was learned of one concept (the task learner Z_g of CIDM 3.1).

    ``factors`` maps canonical layer names to ``LowRank``; ``tokens`` maps the name of a text encoder to ``[k, R, D]``,
    R rows per word, and ``token_layers`` says which of them each cross-attention layer reads: its own, if it is empty.
    ``text_factors`` are those of the text encoders, if they learned. A LoRA that was learned elsewhere has no words and no tokens:
    it takes part where a prompt holds one of its ``triggers`` or its handle. ``about`` has author, license and description;
    ``preview`` is a small JPEG. A concept of Infusion has ``residuals [C]`` by linear layer (``<layer>.to_v``) and nothing else: its
    handle stands for the class word with the residuals at it.
    """

    name: str
    class_word: str
    words: tuple[str, ...]
    factors: Mapping[str, LowRank]
    tokens: Mapping[str, Tensor]
    architecture: str
    fingerprint: str
    task: int = 1
    training: Mapping[str, Any] = field(default_factory=dict)
    token_layers: tuple[int, ...] = ()
    text_factors: Mapping[str, LowRank] = field(default_factory=dict)
    triggers: tuple[str, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    preview: bytes = b""
    residuals: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """What it was learned with: "infusion", or "cidm", which any other LoRA counts as."""
        return "infusion" if self.residuals else "cidm"

    @property
    def kind(self) -> str:
        """A "thing" or a "style", as whoever taught it said, or "" where nobody did."""
        return str(self.training.get("kind", ""))

    @property
    def all_factors(self) -> dict[str, LowRank]:
        """Those of the U-Net and those of the text encoders; their names differ."""
        return {**self.factors, **self.text_factors}

    def tables(self) -> dict[str, Table]:
        """Token rows by word."""
        layers = self.token_layers or tuple(range(next((t.shape[1] for t in self.tokens.values()), 0)))
        return {w: Table({e: t[i] for e, t in self.tokens.items()}, layers) for i, w in enumerate(self.words)}


def check_name(name: str) -> str:
    """The name itself if it can be a file name and a ``<handle>``. Raises ``ValueError`` otherwise."""
    if not NAME.fullmatch(name):
        raise ValueError(f"concept name {name[:80]!r}: expected 1 to 64 letters, digits, '-' or '_', starting with a letter or digit")
    return name


def lora_state(concept: Concept) -> dict[str, Tensor]:
    """The factors as a LoRA state dict: ``<key>.lora_up.weight``, ``.lora_down.weight``, ``.alpha`` (= rank)."""
    out: dict[str, Tensor] = {}
    family = family_of(concept.architecture)
    for layer, f in concept.all_factors.items():
        key = family.kohya_key(layer)
        up, down = unfolded(f)
        out[f"{key}.lora_up.weight"] = up.detach().float().cpu().contiguous()
        out[f"{key}.lora_down.weight"] = down.detach().float().cpu().contiguous()
        out[f"{key}.alpha"] = torch.tensor(float(f.rank))
    return out


def residual_state(concept: Concept) -> dict[str, Tensor]:
    """Residuals as a file has them: ``infusion.<layer>``."""
    return {f"{RESIDUAL}{layer}": r.detach().float().cpu().contiguous() for layer, r in concept.residuals.items()}


def unfolded(f: LowRank) -> tuple[Tensor, Tensor]:
    """Up and down as files have them: those of a convolution are ``[out, r, 1, 1]`` and ``[r, in, kh, kw]``."""
    if not f.kernel:
        return f.up, f.down
    return f.up[:, :, None, None], f.down.unflatten(1, (-1, *f.kernel))


def folded(up: Tensor, down: Tensor) -> LowRank:
    """Factors from the tensors of a file. Raises ``ValueError`` when they do not fit together."""
    if up.ndim == 4 and down.ndim == 4 and up.shape[2:] == (1, 1):
        return LowRank(up.flatten(1), down.flatten(1), tuple(down.shape[2:]))
    return LowRank(up, down)


def save_concept(concept: Concept, file: Path) -> None:
    """Write atomically: a reader, or a machine that loses power, sees the old file or the new one.

    Only a file with residuals is of format 2: those of format 1 stay readable for older versions.
    """
    header = {
        "format": FORMAT if concept.residuals else 1,
        "name": check_name(concept.name),
        "class_word": concept.class_word,
        "words": list(concept.words),
        "layers": list(concept.factors),
        "architecture": concept.architecture,
        "fingerprint": concept.fingerprint,
        "task": concept.task,
        "training": dict(concept.training),
        "token_shapes": {k: list(t.shape) for k, t in concept.tokens.items()},
        "token_layers": list(concept.token_layers),
        "text_layers": list(concept.text_factors),
        "triggers": list(concept.triggers),
    } | ({"method": concept.method, "residuals": list(concept.residuals)} if concept.residuals else {})
    tokens = {
        k: base64.b64encode(t.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes()).decode()
        for k, t in concept.tokens.items()
    }
    metadata = {"cidm": json.dumps(header), "cidm.tokens": json.dumps(tokens), "modelspec.title": concept.name}
    metadata |= {f"modelspec.{key}": concept.about[key] for key in ABOUT if concept.about.get(key)}
    if concept.preview:
        metadata["modelspec.thumbnail"] = JPEG + base64.b64encode(concept.preview).decode()
    state = lora_state(concept) | residual_state(concept)
    metadata["cidm.sha256"] = checksum(metadata, state)
    write_atomically(packed(state, metadata), file)


def read_header(file: Path) -> dict[str, Any]:
    """The description of a concept without its tensors. Raises ``ValueError`` for a file that is not a whole concept."""
    return _open(file)[0]


def read_preview(file: Path) -> bytes:
    """The small JPEG in a concept file, empty if it has none."""
    return _preview(_open(file)[1])


def _preview(metadata: Mapping[str, str]) -> bytes:
    try:
        return base64.b64decode(metadata.get("modelspec.thumbnail", "").removeprefix(JPEG))
    except ValueError:
        return b""


def damaged(file: Path, what: object) -> ValueError:
    return ValueError(f"{file.name}: damaged concept file ({what}): restore it from a copy or remove it from the bank")


def _open(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(file, "pt") as f:
            metadata = f.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(file, error) from error
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
    return header, metadata


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


def load_concept(file: Path) -> Concept:
    """Read a concept. Raises ``ValueError`` naming the file, and the key where there is one, if anything is amiss."""
    file = Path(file)
    header, metadata = _open(file)
    try:
        family = family_of(header["architecture"])
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    layers, text_layers = header["layers"], header["text_layers"]
    with safe_open(file, "pt") as f:
        state = {}
        for key in f.keys():  # noqa: SIM118 -- an open file, not a dict
            try:
                state[key] = f.get_tensor(key)
            except (SafetensorError, ValueError, RuntimeError) as error:
                raise damaged(file, f"{key}: {error}") from error
    factors = {}
    for layer in [*layers, *text_layers]:
        key = family.kohya_key(layer)
        try:
            up, down, alpha = (state[f"{key}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha"))
            if not (up.is_floating_point() and down.is_floating_point()):
                raise ValueError(f"the factors are {up.dtype} and {down.dtype}, expected numbers with a fraction")
            factors[layer] = folded(up, down)
            if alpha.numel() != 1 or alpha.item() != factors[layer].rank:
                raise ValueError(f"alpha is {str(alpha.tolist())[:40]}, expected the rank {factors[layer].rank}")
        except KeyError as error:
            raise damaged(file, f"{error.args[0]} is missing") from error
        except ValueError as error:
            raise damaged(file, f"{key}: {error}") from error
        if not (up.float().isfinite().all() and down.float().isfinite().all()):
            raise damaged(file, f"{key}: not all factors are finite numbers")
    residuals = {}
    for layer in header["residuals"]:
        key = f"{RESIDUAL}{layer}"
        if key not in state:
            raise damaged(file, f"{key} is missing")
        residuals[layer] = state[key]
        if not (residuals[layer].is_floating_point() and residuals[layer].ndim == 1 and residuals[layer].isfinite().all()):
            raise damaged(file, f"{key}: expected a vector of finite numbers")
    if metadata.get("cidm.sha256", expected := checksum(metadata, state)) != expected:
        raise damaged(file, "its contents are not what was written")
    try:
        encoded = json.loads(metadata["cidm.tokens"])
        tokens = {
            k: torch.from_numpy(np.frombuffer(base64.b64decode(encoded[k], validate=True), "<f4").reshape(shape).copy())
            for k, shape in header["token_shapes"].items()
        }
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise damaged(file, f"tokens: {error!r}") from error
    if header["words"] and not tokens:
        raise damaged(file, f"tokens: there are none for the words {', '.join(header['words'])[:80]}")
    for encoder, rows in tokens.items():
        fits = rows.ndim == 3 and len(rows) == len(header["words"]) and max(header["token_layers"], default=0) < rows.shape[1]
        if not (fits and rows.isfinite().all()):
            raise damaged(file, f"tokens: {encoder} has {tuple(rows.shape)} rows for {len(header['words'])} words, or some are not finite")
    return Concept(
        header["name"],
        header["class_word"],
        tuple(header["words"]),
        {layer: factors[layer] for layer in layers},
        tokens,
        header["architecture"],
        header["fingerprint"],
        header["task"],
        header["training"],
        tuple(header["token_layers"]),
        {layer: factors[layer] for layer in text_layers},
        tuple(header["triggers"]),
        {key: metadata[f"modelspec.{key}"] for key in ABOUT if f"modelspec.{key}" in metadata},
        _preview(metadata),
        residuals,
    )


def checksum(metadata: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    """SHA-256 of what decides a concept: its header, its tokens, its tensors; a title or an author may be edited by other tools."""
    digest = hashlib.sha256((metadata["cidm"] + metadata.get("cidm.tokens", "")).encode())
    for key in sorted(state):
        tensor = state[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
