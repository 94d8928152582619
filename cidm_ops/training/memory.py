"""What a step computes with: precision, and what it does without when memory is short."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone, TransformerBackbone
from .config import TrainingConfig

LARGE = 100e6  # parameters: below, casting costs more than bf16 saves (Doodle: 15 % more)
FP16_SCALE = 4096.0  # gradients of a loss through a model in plain fp16 would vanish
# CUDA and MPS, the CPU on Linux, on Windows, oneDNN, and the C++ library
SHORT = ("out of memory", "can't allocate memory", "not enough memory", "could not create a primitive", "bad_alloc")


@dataclass(frozen=True)
class MemoryPlan:
    """``bf16``: matrix products of a frozen model in fp32 are in bf16 (autocast), while the factors stay fp32; ``micro_batch``: pictures
    that go through the model together. Apart from rounding, what is learned does not depend on any of them.
    """

    bf16: bool
    checkpointing: bool
    micro_batch: int
    full: bool = True  # the model is in fp32, so bf16 is less
    scale: float = 1.0  # of the loss in the backward pass

    @classmethod
    def of(cls, config: TrainingConfig, backbone: Backbone | TransformerBackbone) -> "MemoryPlan":
        """Returns the plan that the settings ask for."""
        full = backbone.dtype == torch.float32
        large = sum(p.numel() for p in backbone.unet.parameters()) > LARGE
        bf16 = config.precision == "bf16" or (config.precision == "auto" and large and has_bf16(backbone.device))
        scale = FP16_SCALE if backbone.dtype == torch.float16 else 1.0
        return cls(bf16 and full, config.checkpointing, config.batch, full, scale)

    def reduce(self) -> "MemoryPlan | None":
        """Returns the plan with the next smaller need of memory, or none: checkpointing, one picture at a time, bf16."""
        if not self.checkpointing:
            return replace(self, checkpointing=True)
        if self.micro_batch > 1:
            return replace(self, micro_batch=1)
        return replace(self, bf16=True) if self.full and not self.bf16 else None

    def record(self) -> dict[str, Any]:
        """Returns the plan as the state of a run has it."""
        return {"at_once" if key == "micro_batch" else key: value for key, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "MemoryPlan":
        """Returns the plan of ``record``."""
        return cls(**{"micro_batch" if key == "at_once" else key: value for key, value in record.items()})

    def __str__(self) -> str:
        checkpointing, precision = "on" if self.checkpointing else "off", "bf16" if self.bf16 else "as_model"
        return f"checkpointing {checkpointing}, {self.micro_batch} at once, precision {precision}"


class Bf16Weights:
    """bf16 copies of the fp32 matrices of frozen modules, made once: autocast would make them anew in every step.

    Only where they take no more than a quarter of the memory that is free when the run begins.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        self.copies: dict[nn.Module, tuple[int, nn.Parameter]] = {}
        inside = (layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
        self.layers = [layer for layer in inside if layer.weight.dtype == torch.float32]
        if self.layers and sum(2 * layer.weight.numel() for layer in self.layers) > available_memory(self.layers[0].weight.device) / 4:
            self.layers = []

    @contextmanager
    def use(self) -> Iterator[None]:
        """Let layers compute with the copies while this is open; a weight that was moved since is copied again."""
        own = [layer._parameters["weight"] for layer in self.layers]
        for layer, weight in zip(self.layers, own, strict=True):
            assert weight is not None
            if layer not in self.copies or self.copies[layer][0] != weight.data_ptr():
                self.copies[layer] = weight.data_ptr(), nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
            layer._parameters["weight"] = self.copies[layer][1]
        try:
            yield
        finally:
            for layer, weight in zip(self.layers, own, strict=True):
                layer._parameters["weight"] = weight


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware is made for bf16: CUDA from Ampere on, CPUs with AMX or with AVX-512's dot products of bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(getattr(torch.cpu, f"_is_{unit}_supported", bool)() for unit in ("amx_tile", "avx512_bf16"))


def available_memory(device: torch.device) -> float:
    """Bytes that can still be had on a device; infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in SHORT)
    )
