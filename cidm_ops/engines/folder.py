"""The parts of a model's folder in diffusers' layout."""

from pathlib import Path
from typing import Any

from ..text_file import read_json


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file of a diffusers folder. Raises ``ValueError`` that names it."""
    if not path.is_file():
        raise ValueError(f"{path.parents[1]} is no diffusers model folder: {path.parent.name}/{path.name} is missing")
    if not isinstance(config := read_json(path), dict):
        raise ValueError(f"{path} holds no settings: get the model again")
    return config


def variant(folder: Path) -> str | None:
    """diffusers' name for half-precision files, if those are all the folder has."""
    weights = [file.name for ending in ("*.safetensors", "*.bin") for file in folder.glob(ending)]
    return "fp16" if weights and all(".fp16." in name for name in weights) else None
