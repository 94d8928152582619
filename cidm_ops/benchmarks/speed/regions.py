"""What regions cost when painting: a step with 2, 4 and 8 of them beside a plain one and beside the host's own way, in the real ComfyUI."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from ...models.sd import SD1
from .checkpoints import write_checkpoint
from .comfy import run_inside
from .timing import machine

DOODLE_PIXELS = 256  # room for regions: Doodle was made for 128


def run(comfy: Path, pixels: int | None = None, rounds: int = 2, family: str = "") -> dict[str, Any]:
    """``step_ratio_N`` is a step with N regions, each its own prompt and concept, to one of the bare model with one prompt;
    ``speedup_over_hooks_N`` one with ComfyUI's own nodes (a LoRA hook, a mask and a text for each region, a default for the rest) to ours,
    ``speedup_over_cropped_hooks_N`` the same with each pass cropped to its mask (mask bounds), which paints something else: what a region
    sees ends at its edge. ``blending_per_evaluation_N``: a step with region noise estimation to a plain one, by rows of the U-Net's
    batch: 2 + N to 2. ``*_gb`` is the peak of a run. Names with ``doodle_`` are those of the model that ships, the others of
    full-size SD1.5, ``pixels`` wide: 512, or 256 without a GPU.

    Of a ``family`` of transformers, "flux", "nextdit" or "qwen", the model has its real widths and few blocks, and the picture 512 pixels:
    1,024 tokens. There the texts of regions have 64 tokens, and in names with ``long_`` 512.
    """
    if family:
        return run_inside(comfy, "host_joint.py", family, rounds, pixels or 512)
    pixels = pixels or (512 if torch.cuda.is_available() else 256)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "random-sd15.safetensors", SD1)
        large = run_inside(comfy, "host_regions.py", checkpoint, rounds, pixels)
    small = run_inside(comfy, "host_regions.py", "doodle", 5 * rounds, DOODLE_PIXELS)
    shared = {*machine(), "comfyui"}
    own = {name if name in shared else f"doodle_{name}": value for name, value in small.items()}
    return (
        large | own | {"compared": "ComfyUI's sampler on the bare model, Paint in Regions, ComfyUI's hook nodes; rank 4, cross-attention"}
    )
