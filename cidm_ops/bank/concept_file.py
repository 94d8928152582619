"""A concept in one safetensors file: an ordinary LoRA to every other tool, and its layer-wise tokens in the header; or residuals.

Factors carry kohya's names for diffusers modules with alpha equal to the rank, or peft's and no alpha, as the family has it, so every
loader applies ``up @ down`` unscaled. Token tables are base64 fp32 in the metadata: a key that a LoRA loader does not know would make it
warn.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..lowrank import LowRank
from ..models.registry import family_of
from .concept import Concept
from .files import write_atomically
from .formats import packed
from .header import ABOUT, FORMAT, JPEG, Header, check_name, damaged, preview_in, read_metadata

RESIDUAL = "infusion."  # begins the keys of residuals
KOHYA = ("lora_up.weight", "lora_down.weight")  # with alpha beside them
PEFT = ("lora_B.weight", "lora_A.weight")  # without, diffusers reads no alpha of them


def lora_state(concept: Concept) -> dict[str, Tensor]:
    """The factors as a LoRA state dict: ``<key>.lora_up.weight``, ``.lora_down.weight``, ``.alpha`` (= rank); or ``<key>.lora_B.weight``
    and ``.lora_A.weight`` for families whose files have dots in their names.
    """
    family = family_of(concept.architecture)
    return factor_state({family.file_key(layer): f for layer, f in concept.all_factors.items()}, family.files.dotted)


def factor_state(factors: Mapping[str, LowRank], dotted: bool) -> dict[str, Tensor]:
    """Factors by the names of layers in a file, as a LoRA state dict."""
    out: dict[str, Tensor] = {}
    up_name, down_name = PEFT if dotted else KOHYA
    for key, f in factors.items():
        up, down = unfolded(f)
        out[f"{key}.{up_name}"] = up.detach().float().cpu().contiguous()
        out[f"{key}.{down_name}"] = down.detach().float().cpu().contiguous()
        if not dotted:
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


def load_concept(file: Path) -> Concept:
    """Read a concept. Raises ``ValueError`` naming the file, and the key where there is one, if anything is amiss."""
    file = Path(file)
    header, metadata = read_metadata(file)
    try:
        family = family_of(header["architecture"])
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error
    state = _read_tensors(file)
    dotted = family.files.dotted
    factors = {layer: _read_factors(file, state, family.file_key(layer), dotted) for layer in header["layers"]}
    text_factors = {layer: _read_factors(file, state, family.file_key(layer), dotted) for layer in header["text_layers"]}
    residuals = {layer: _read_residual(file, state, f"{RESIDUAL}{layer}") for layer in header["residuals"]}
    if metadata.get("cidm.sha256", expected := checksum(metadata, state)) != expected:
        raise damaged(file, "its contents are not what was written")
    return Concept(
        name=header["name"],
        class_word=header["class_word"],
        architecture=header["architecture"],
        fingerprint=header["fingerprint"],
        words=tuple(header["words"]),
        factors=factors,
        tokens=_read_token_rows(file, header, metadata),
        token_layers=tuple(header["token_layers"]),
        text_factors=text_factors,
        residuals=residuals,
        triggers=tuple(header["triggers"]),
        task=header["task"],
        training=header["training"],
        about={key: metadata[f"modelspec.{key}"] for key in ABOUT if f"modelspec.{key}" in metadata},
        preview=preview_in(metadata),
    )


def _read_tensors(file: Path) -> dict[str, Tensor]:
    state = {}
    with safe_open(file, "pt") as f:
        for key in f.keys():  # noqa: SIM118 -- an open file, not a dict
            try:
                state[key] = f.get_tensor(key)
            except (SafetensorError, ValueError, RuntimeError) as error:
                raise damaged(file, f"{key} cannot be read") from error
    return state


def _read_factors(file: Path, state: Mapping[str, Tensor], key: str, dotted: bool) -> LowRank:
    """The factors of a layer whose name in the file is ``key``."""
    try:
        up, down = (state[f"{key}.{part}"] for part in (PEFT if dotted else KOHYA))
        alpha = None if dotted else state[f"{key}.alpha"]
        if not (up.is_floating_point() and down.is_floating_point()):
            raise ValueError(f"the factors are {up.dtype} and {down.dtype}, expected numbers with a fraction")
        factors = folded(up, down)
        if alpha is not None and (alpha.numel() != 1 or alpha.item() != factors.rank):
            raise ValueError(f"alpha is {str(alpha.tolist())[:40]}, expected the rank {factors.rank}")
    except KeyError as error:
        raise damaged(file, f"{error.args[0]} is missing") from error
    except ValueError as error:
        raise damaged(file, f"{key}: {error}") from error
    if not (up.float().isfinite().all() and down.float().isfinite().all()):
        raise damaged(file, f"{key}: not all factors are finite numbers")
    return factors


def _read_residual(file: Path, state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise damaged(file, f"{key} is missing")
    residual = state[key]
    if not (residual.is_floating_point() and residual.ndim == 1 and residual.isfinite().all()):
        raise damaged(file, f"{key}: expected a vector of finite numbers")
    return residual


def _read_token_rows(file: Path, header: Header, metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Rows ``[k, R, D]`` of the k words by text encoder."""
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
    return tokens


def checksum(metadata: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    """SHA-256 of what decides a concept: its header, its tokens, its tensors; a title or an author may be edited by other tools."""
    digest = hashlib.sha256((metadata["cidm"] + metadata.get("cidm.tokens", "")).encode())
    for key in sorted(state):
        tensor = state[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
