"""What concepts cost when painting: a step, a new prompt, and a bank of a thousand; full-size SD1.5 in the real ComfyUI, in turns."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...adapters import linears
from ...bank.bank import Bank
from ...bank.concept_file import save_concept
from ...bank.index import INDEX
from ...models.sd import SD1
from .checkpoints import write_checkpoint
from .comfy import run_inside
from .models import random_backbone, random_concepts
from .opening import openings

COUNT = 1000


def run(comfy: Path, rounds: int = 3, pixels: int = 256) -> dict[str, Any]:
    """Ratios are to the bare model's step, or to a bank of three; ``style`` acts on its own words, beside the layers; ``aggregate_seconds``
    is from a new prompt with ten concepts to patched weights, ``encode_seconds`` its text beside that.
    """
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large", Path(folder) / "small"
        write_banks(large, small)
        first, *again = openings(large, 1 + rounds)
        assert len(Bank(large).names) == COUNT
        checkpoint = write_checkpoint(Path(folder) / "random-sd15.safetensors", SD1)
        figures = run_inside(comfy, "host_aggregate.py", checkpoint, large, small, rounds, pixels)
        index = (large / INDEX).stat().st_size
    return {
        **figures,
        "open_1000_seconds": round(sorted(seconds for seconds, _ in again)[rounds // 2], 4),
        "open_1000_mb": round(max(mb for _, mb in again), 2),
        "open_1000_without_index_seconds": round(first[0], 4),
        "open_1000_without_index_mb": round(first[1], 2),
        "index_mb": round(index / 2**20, 2),
        "compared": "ComfyUI's sampler on the bare model and with concepts of Apply Concepts; rank 4, cross-attention",
        "pixels": pixels,
    }


def write_banks(large: Path, small: Path) -> None:
    """A thousand concepts of full size, and the first three of them."""
    backbone = random_backbone(SD1)
    layers: dict[str, Any] = linears(backbone, "cross_attention")
    shapes = {n: (m.out_features, m.in_features) for n, m in layers.items()}
    for made in (random_concepts(backbone, shapes, 1, first=task)[0] for task in range(1, COUNT + 1)):
        rows = torch.randn(2, len(backbone.cross_attention), 768) * 0.02
        for bank in (large, small) if made.task <= 3 else (large,):
            save_concept(replace(made, tokens={SD1.encoder().name: rows}), bank / f"{made.name}.safetensors")
    assert len(Bank(small).names) == 3
