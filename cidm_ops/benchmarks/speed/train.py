"""Our trainer against the host's own Train LoRA node: same model, batch and size, in the real ComfyUI, in turns; and outside of it beside
peft and the limit.
"""

import tempfile
from pathlib import Path
from typing import Any

from ...models.sd import SD1
from .checkpoints import write_checkpoint
from .comfy import run_inside
from .loops import run_loops


def run(comfy: Path, rounds: int = 5, pixels: int = 256, family: str = "") -> dict[str, Any]:
    """``time_ratio`` and ``memory_ratio`` are ours by the host's, with the words still learning: the dearest part of our recipe. What
    begins with ``loop_``, and the ratios to the limit, are of steps outside of the host (``run_loops``). With a ``family`` it is a
    transformer, which learns no words.
    """
    if family:
        return run_joint(comfy, family, rounds, pixels)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "random-sd15.safetensors", SD1)
        times = run_inside(comfy, "host_steps.py", checkpoint, "both", rounds, pixels)
        peaks = {side: run_inside(comfy, "host_steps.py", checkpoint, side, 1, pixels)["peak_gb"] for side in ("ours", "host")}
    return {
        "time_ratio": times["time_ratio"],
        "frozen_time_ratio": times["frozen_time_ratio"],
        "memory_ratio": round(peaks["ours"] / peaks["host"], 4),
        "ours_peak_gb": peaks["ours"],
        "host_peak_gb": peaks["host"],
        **{k: v for k, v in times.items() if k not in ("time_ratio", "frozen_time_ratio", "peak_gb")},
        "compared": "CIDM Train Concept (whole recipe) with ComfyUI's Train LoRA (defaults, gradient checkpointing off), batch 1",
        "pixels": pixels,
        **run_loops(rounds, pixels),
    }


def run_joint(comfy: Path, family: str, rounds: int, pixels: int) -> dict[str, Any]:
    """Ours against the host's on a transformer of real width and few blocks, built inside the host."""
    times = run_inside(comfy, "host_joint_steps.py", family, "both", rounds, pixels)
    peaks = {side: run_inside(comfy, "host_joint_steps.py", family, side, 1, pixels)["peak_gb"] for side in ("ours", "host")}
    return {
        "time_ratio": times["time_ratio"],
        "memory_ratio": round(peaks["ours"] / peaks["host"], 4),
        "ours_peak_gb": peaks["ours"],
        "host_peak_gb": peaks["host"],
        **{k: v for k, v in times.items() if k not in ("time_ratio", "peak_gb")},
        "compared": "Train Concept and the host's Train LoRA (all its layers, gradient checkpointing), defaults but for rank 16, batch 1",
        "pixels": pixels,
    }
