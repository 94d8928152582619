"""Single-file checkpoints in the original layout: which family one is of, what it predicts, and what of it is used, by names and shapes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .family import Family
from .sd import SD1, SDXL

TEXT_WIDTH_KEYS = [f"model.diffusion_model.input_blocks.{i}.1.transformer_blocks.0.attn2.to_k.weight" for i in (1, 4)]
INPUT_KEY = "model.diffusion_model.input_blocks.0.0.weight"
WANTED = "expected a Stable Diffusion 1 or SDXL checkpoint (U-Net, text encoder and autoencoder in one file)"

# Empty tensors with which a checkpoint says what it predicts, as ComfyUI reads them.
VELOCITY, ZERO_SNR = "v_pred", "ztsnr"
UNKNOWN_MARKS = {
    "edm_mean": "the EDM formulation (Playground 2.5)",
    "edm_std": "the EDM formulation (Playground 2.5)",
    "edm_vpred.sigma_max": "v in the EDM formulation (CosXL)",
    "edm_vpred.sigma_min": "v in the EDM formulation (CosXL)",
}
PREDICTION = "modelspec.prediction_type"  # in the metadata, by the ModelSpec standard: "epsilon" or "v"

PARTS = {
    "U-Net": r"model\.diffusion_model\.",
    "text encoder": r"cond_stage_model\.|conditioner\.embedders\.0\.",
    "second text encoder": r"conditioner\.embedders\.1\.",
    "autoencoder": r"first_stage_model\.",
}
SPARE = {
    "moving averages of the U-Net": r"model_ema\.",
    "a table of the noise schedule, which is computed": r"(model\.)?((sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|"
    r"betas|posterior_\w+|sqrt_\w+|log_\w+|lvlb_weights|logvar|denoiser\..*)",
    "state of the training": r"(optimizer|lr_schedulers|callbacks|loss|loops)\b.*",
}


class Shaped(Protocol):
    """Anything that has a shape, such as a tensor."""

    @property
    def shape(self) -> Sequence[int]: ...


def is_checkpoint(keys: Iterable[str]) -> bool:
    """Whether tensors of these names are a diffusion model in the original layout."""
    return any(key.startswith("model.diffusion_model.") and not re.search(r"\.lora|lora_|\.hada_|\.lokr_", key) for key in keys)


def family_of_checkpoint(state: Mapping[str, Shaped]) -> Family:
    """Which family a checkpoint is of. Raises ``ValueError``, saying what the file is, for any other."""
    key = next((k for k in TEXT_WIDTH_KEYS if k in state), None)
    if INPUT_KEY not in state or key is None:
        raise ValueError(f"no U-Net of Stable Diffusion 1 or SDXL is in it: {WANTED}")
    width = state[key].shape[1] if len(state[key].shape) > 1 else 0
    family = next((f for f in (SD1, SDXL) if f.width == width), None)
    if family is None:
        kind = {1024: "as Stable Diffusion 2 does", 1280: "as the SDXL refiner does"}.get(width, "")
        raise ValueError(f"it reads a text of width {width} {kind}, not 768 or 2048: {WANTED}")
    if (channels := state[INPUT_KEY].shape[1]) != family.latent_channels:
        raise ValueError(f"it takes {channels} input channels (an inpainting or editing model), not {family.latent_channels}: {WANTED}")
    return family


def schedule_of_checkpoint(keys: Iterable[str], metadata: Mapping[str, str], family: Family) -> dict[str, Any]:
    """The noise schedule of a checkpoint in diffusers' words, by its marks and its metadata.

    Marks go before metadata. Raises ``ValueError`` for marks of what this version cannot paint with.
    """
    known = {*keys}
    if mark := next((m for m in UNKNOWN_MARKS if m in known), None):
        raise ValueError(f"by its mark {mark!r} it predicts {UNKNOWN_MARKS[mark]}: expected epsilon or v")
    said = metadata.get(PREDICTION, "epsilon").strip().lower()
    if said not in ("epsilon", "eps", "v", "v_prediction", "v-prediction"):
        raise ValueError(f"by its metadata it predicts {said[:40]!r}: expected epsilon or v")
    velocity = VELOCITY in known or said.startswith("v")
    if ZERO_SNR in known and not velocity:
        raise ValueError(
            f"by its mark {ZERO_SNR!r} it ends in pure noise (zero terminal SNR), which a model of epsilon cannot undo, and it has no mark "
            f"{VELOCITY!r}: look for the whole file"
        )
    schedule = dict(family.diffusers.schedule)
    schedule |= {"prediction_type": "v_prediction"} if velocity else {}
    return schedule | ({"rescale_betas_zero_snr": True} if ZERO_SNR in known else {})


@dataclass(frozen=True)
class Inventory:
    """How many tensors of a checkpoint are of which part, and why the others are not used, by their keys."""

    parts: Mapping[str, int]
    unused: Mapping[str, str]


def inventory(keys: Iterable[str]) -> Inventory:
    """Say what of a checkpoint is used."""
    parts: Counter[str] = Counter()
    unused = {}
    for key in keys:
        part = next((name for name, pattern in PARTS.items() if re.match(pattern, key)), "")
        part = "mark of what it predicts" if key in (VELOCITY, ZERO_SNR, *UNKNOWN_MARKS) else part
        if part:
            parts[part] += 1
        else:
            unused[key] = next((why for why, pattern in SPARE.items() if re.match(pattern, key)), "no part of a checkpoint that is known")
    return Inventory(parts, unused)


def missing_parts(found: Inventory, family: Family) -> list[str]:
    """The parts that a checkpoint of a family needs and does not have."""
    return [part for part in PARTS if part not in found.parts and (part != "second text encoder" or len(family.encoders) > 1)]
