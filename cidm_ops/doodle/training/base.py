"""What a training of Doodle made: a file for each part, and the model folders that ``--base`` takes, in diffusers' layout."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ...bank.files import write_atomically
from ...models.clip import END, START
from ...models.doodle_transformer import DOODLE_TRANSFORMER
from ...models.sd import DOODLE
from ...text_file import read_json
from ..files import full_token_table
from .loop import save_tensors

# The files of ``result``, in half precision but for the latents' autoencoder.
RESULT = ("parts", "tower", "latents", "vae", "unet", "text", "reader", "bridge", "transformer")
FLOW: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
PREDICTED_AS = {"v": "v_prediction", "eps": "epsilon"}  # in diffusers' words


@dataclass(frozen=True)
class Part:
    """A network of a model folder: its configuration, its weights and the name of their file."""

    config: Mapping[str, Any]
    state: dict[str, Tensor]
    name: str = "diffusion_pytorch_model"


def result_file(folder: Path, name: str) -> Path:
    """Where a training keeps what it made: one of ``RESULT``."""
    return folder / "result" / f"{name}.safetensors"


def autoencoder_file(folder: Path) -> Path:
    """The autoencoder of a training: with its last decoder, or with the one that was trained beside the encoder where there is no other.

    Raises ``FileNotFoundError`` where there is none.
    """
    files = [file for name in ("vae", "latents") if (file := result_file(folder, name)).exists()]
    if not files:
        raise FileNotFoundError(f"{folder} holds no autoencoder: the stage autoencoder comes first")
    return files[0]


def write_base(folder: Path) -> Path:
    """Write the U-Net that a training made as a model folder. Returns it."""
    prediction, family = read_json(folder / "settings.json")["prediction"], DOODLE.diffusers
    noise = {"_class_name": "DDPMScheduler", **family.schedule, "prediction_type": PREDICTED_AS.get(prediction, "")}
    unet = Part({"_class_name": "UNet2DConditionModel", **family.model}, half(result_file(folder, "unet")))
    return write_folder(folder / "base", {"unet": unet, **shared_parts(folder)}, FLOW if prediction == "flow" else noise)


def write_transformer(folder: Path) -> Path:
    """Write the transformer that a training made as a model folder, with the text encoder and the autoencoder of its U-Net. Returns it."""
    family = DOODLE_TRANSFORMER.diffusers
    model = Part({**family.facts, **family.model}, half(result_file(folder, "transformer")))
    return write_folder(folder / "transformer", {family.folder: model, **shared_parts(folder)}, FLOW)


def shared_parts(folder: Path) -> dict[str, Part]:
    """The text encoder with its whole token table, and the autoencoder."""
    states, kind = half(result_file(folder, "text")), DOODLE.encoder()
    table = full_token_table(states.pop("token_ids").long(), states.pop("token_rows").float()).half()
    states["text_model.embeddings.token_embedding.weight"] = table
    text = {**DOODLE.diffusers.texts[kind.name], "model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}
    text |= {"vocab_size": len(table), "bos_token_id": START, "eos_token_id": END, "pad_token_id": END}
    vae = {"_class_name": "AutoencoderTiny", **DOODLE.diffusers.vae}
    return {"vae": Part(vae, half(autoencoder_file(folder))), kind.diffusers: Part(text, states, "model")}


def half(file: Path) -> dict[str, Tensor]:
    """The tensors of a file in half precision."""
    return {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}


def write_folder(place: Path, parts: Mapping[str, Part], scheduler: Mapping[str, Any]) -> Path:
    """Write a model folder of some parts and a scheduler. Returns it."""
    for name, part in parts.items():
        save_tensors(part.state, place / name / f"{part.name}.safetensors", {"format": "pt"})
        write_atomically(json.dumps(part.config, indent=1).encode(), place / name / "config.json")
    write_atomically(json.dumps(scheduler, indent=1).encode(), place / "scheduler" / "scheduler_config.json")
    return place
