"""Our trainer against the host's own Train LoRA node: same full-size model, batch and size, in the real ComfyUI, in turns."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ...engines.families import SD1
from .checkpoints import write_checkpoint

SCRIPT = Path(__file__).with_name("host_steps.py")
PACK = Path(__file__).resolve().parents[3]


def run(comfy: Path, rounds: int = 5, pixels: int = 256) -> dict[str, Any]:
    """``time_ratio`` and ``memory_ratio`` are ours by the host's, with the words still learning: the dearest part of our recipe.

    ``comfy`` is a ComfyUI checkout with its ``.venv``. Raises ``FileNotFoundError`` if it is none and ``RuntimeError`` with
    the end of its log if it fails.
    """
    comfy = comfy.expanduser().resolve()
    python = comfy / ".venv" / "bin" / "python"
    if not (comfy / "main.py").is_file() or not python.is_file():
        raise FileNotFoundError(f"{comfy}: expected a ComfyUI checkout with a .venv in it; give one with --comfy")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "random-sd15.safetensors", SD1)
        times = steps(comfy, python, checkpoint, "both", rounds, pixels)
        peaks = {side: steps(comfy, python, checkpoint, side, 1, pixels)["peak_gb"] for side in ("ours", "host")}
    return {
        "time_ratio": times["time_ratio"],
        "frozen_time_ratio": times["frozen_time_ratio"],
        "memory_ratio": round(peaks["ours"] / peaks["host"], 4),
        "ours_peak_gb": peaks["ours"],
        "host_peak_gb": peaks["host"],
        **{k: v for k, v in times.items() if k not in ("time_ratio", "frozen_time_ratio", "peak_gb")},
        "compared": "CIDM Train Concept (whole recipe) with ComfyUI's Train LoRA (defaults, gradient checkpointing off), batch 1",
        "pixels": pixels,
    }


def steps(comfy: Path, python: Path, checkpoint: Path, side: str, rounds: int, pixels: int) -> dict[str, Any]:
    """Run ``host_steps.py`` with the host's own Python."""
    out = checkpoint.with_name(f"{side}.json")
    command = [python, SCRIPT, PACK, checkpoint, out, side, rounds, pixels]
    done = subprocess.run([str(c) for c in command], cwd=comfy, capture_output=True, text=True)
    if done.returncode or not out.exists():
        raise RuntimeError(f"the steps in {comfy.name} failed: {' '.join((done.stderr or done.stdout)[-1500:].split())}")
    return json.loads(out.read_text())
