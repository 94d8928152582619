"""The ComfyUI checkouts of this machine, which the tests and the release check run on."""

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from lock import ROOT

NO_HOST = "no ComfyUI: put checkouts into COMFYUI_PATH (':' between several), the pack into custom_nodes, or a checkout at ~/comfy/ComfyUI"
NEEDED = ("aiohttp", "av", "comfyui_frontend_package", "einops", "sqlalchemy", "torchsde", "transformers")


@dataclass(frozen=True)
class Host:
    """A ComfyUI checkout and the interpreter that runs it; None where nothing on this machine can."""

    path: Path
    version: str
    python: Path | None

    def __str__(self) -> str:
        return f"ComfyUI {self.version} ({self.path})"


def find_hosts() -> list[Host]:
    """COMFYUI_PATH, else the ComfyUI that the pack lies in, else ~/comfy/ComfyUI*; oldest first.

    Raises ``ValueError`` where COMFYUI_PATH names a folder that is none.
    """
    if named := os.environ.get("COMFYUI_PATH"):
        folders = [Path(folder).expanduser() for folder in named.split(os.pathsep) if folder]
        if missing := [str(folder) for folder in folders if not is_host(folder)]:
            raise ValueError(f"COMFYUI_PATH names {', '.join(missing)}: there is no ComfyUI (comfyui_version.py and main.py)")
    elif ROOT.parent.name == "custom_nodes" and is_host(ROOT.parents[1]):
        folders = [ROOT.parents[1]]
    else:
        folders = [folder for folder in (Path.home() / "comfy").glob("ComfyUI*") if is_host(folder)]
    return sorted((host(folder.resolve()) for folder in folders), key=lambda h: [int(part) for part in re.findall(r"\d+", h.version)])


def is_host(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfyui_version.py").is_file()


def host(folder: Path) -> Host:
    """The checkout in a folder, with its own interpreter, or this one where that has what ComfyUI needs."""
    found = re.search(r'"([^"]+)"', (folder / "comfyui_version.py").read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{folder / 'comfyui_version.py'} names no version")
    own = [folder / place for place in (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")]
    here = Path(sys.executable) if all(importlib.util.find_spec(module) for module in NEEDED) else None
    return Host(folder, found.group(1), next((python for python in own if python.is_file()), here))
