"""One concept in one safetensors file: an ordinary LoRA to every other tool, and its layer-wise tokens in the header.

Factors carry kohya's names for diffusers modules with alpha equal to the rank, so every loader applies ``up @ down``
unscaled. Token tables are base64 fp32 in the metadata: a key that a LoRA loader does not know would make it warn.
"""

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..lowrank import LowRank
from ..tokens import Table

FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Concept:
    """What was learned of one concept (the task learner Z_g of CIDM 3.1).

    ``factors`` maps canonical layer names to ``LowRank``; ``tokens`` maps a text encoder ("clip_l", "clip_g") to ``[k, R, D]``,
    R rows per word, and ``token_layers`` says which of them each cross-attention layer reads: its own, if it is empty.
    ``text_factors`` are those of the text encoders, if they learned.
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

    def tables(self) -> dict[str, Table]:
        """Token rows by word."""
        layers = self.token_layers or tuple(range(next(iter(self.tokens.values())).shape[1]))
        return {w: Table({e: t[i] for e, t in self.tokens.items()}, layers) for i, w in enumerate(self.words)}


def check_name(name: str) -> str:
    """The name itself if it can be a file name and a ``<handle>``. Raises ``ValueError`` otherwise."""
    if not NAME.fullmatch(name):
        raise ValueError(f"concept name {name[:80]!r}: expected 1 to 64 letters, digits, '-' or '_', starting with a letter or digit")
    return name


def _key(layer: str, encoders: int) -> str:
    """Kohya's name of a layer; that of a text encoder begins with te, or te1 and te2 where there are two."""
    encoder, _, rest = layer.partition(".")
    if encoder not in ("clip_l", "clip_g"):
        return "lora_unet_" + layer.replace(".", "_")
    number = "" if encoders == 1 else "1" if encoder == "clip_l" else "2"
    return f"lora_te{number}_text_model_" + rest.replace(".", "_")


def lora_state(concept: Concept) -> dict[str, Tensor]:
    """The factors as a LoRA state dict: ``<key>.lora_up.weight``, ``.lora_down.weight``, ``.alpha`` (= rank)."""
    out: dict[str, Tensor] = {}
    for layer, f in {**concept.factors, **concept.text_factors}.items():
        key = _key(layer, len(concept.tokens))
        out[f"{key}.lora_up.weight"] = f.up.detach().float().cpu().contiguous()
        out[f"{key}.lora_down.weight"] = f.down.detach().float().cpu().contiguous()
        out[f"{key}.alpha"] = torch.tensor(float(f.rank))
    return out


def save_concept(concept: Concept, file: Path) -> None:
    """Write atomically: a reader, or a machine that loses power, sees the old file or the new one."""
    header = {
        "format": FORMAT,
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
    }
    tokens = {
        k: base64.b64encode(t.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes()).decode()
        for k, t in concept.tokens.items()
    }
    metadata = {"cidm": json.dumps(header), "cidm.tokens": json.dumps(tokens), "modelspec.title": concept.name}
    write_atomically(save(lora_state(concept), metadata), file)


def write_atomically(data: bytes, file: Path) -> None:
    """Temporary file, fsync, rename, fsync of the folder. Raises ``OSError`` naming the file; what was there stays."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, file)
    except OSError as error:
        what = (
            f"{file} cannot be written ({error.strerror}): nothing is lost, what was there before is unchanged; make room and start again"
        )
        raise type(error)(error.errno, what) from error
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_header(file: Path) -> dict[str, Any]:
    """The description of a concept without its tensors. Raises ``ValueError`` for a file that is not a whole concept."""
    return _open(file)[0]


def _open(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(file, "pt") as f:
            metadata = f.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file.name}: damaged concept file ({error}): restore it from a copy or remove it from the bank") from error
    if "cidm" not in metadata:
        raise ValueError(f"{file.name}: an ordinary safetensors file, not a concept (metadata key 'cidm' is missing)")
    try:
        header = json.loads(metadata["cidm"])
        tokens = json.loads(metadata["cidm.tokens"])
        version = int(header["format"])
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file.name}: damaged concept header ({error!r}): restore it from a copy or remove it from the bank") from error
    if version > FORMAT:
        raise ValueError(f"{file.name}: written in format {version}, this version reads up to {FORMAT}: update the pack")
    return header, tokens


def load_concept(file: Path) -> Concept:
    """Read a concept. Raises ``ValueError`` naming the file, and the key where there is one, if anything is amiss."""
    file = Path(file)
    header, encoded = _open(file)
    factors, text_layers = {}, header.get("text_layers", [])
    with safe_open(file, "pt") as f:
        for layer in [*header["layers"], *text_layers]:
            key = _key(layer, len(header["token_shapes"]))
            try:
                up, down = (f.get_tensor(f"{key}.lora_{side}.weight") for side in ("up", "down"))
                factors[layer] = LowRank(up, down)
            except (SafetensorError, ValueError) as error:
                raise ValueError(f"{file.name}: {key}: {error}") from error
            if not (up.isfinite().all() and down.isfinite().all()):
                raise ValueError(f"{file.name}: {key}: not all factors are finite numbers")
    try:
        tokens = {
            k: torch.from_numpy(np.frombuffer(base64.b64decode(encoded[k]), "<f4").reshape(shape).copy())
            for k, shape in header["token_shapes"].items()
        }
        return Concept(
            header["name"],
            header["class_word"],
            tuple(header["words"]),
            {layer: factors[layer] for layer in header["layers"]},
            tokens,
            header["architecture"],
            header["fingerprint"],
            header["task"],
            header["training"],
            tuple(header.get("token_layers", ())),
            {layer: factors[layer] for layer in text_layers},
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file.name}: damaged concept header ({error!r}): restore it from a copy or remove it from the bank") from error
