"""Infusion on the host's MODEL and CONDITIONING: rows of a batch whose text carries residuals go through the U-Net a second time.

The second pass of a row is the foundation's, in the same batch. Everything acts between a layer's attention and its ``to_out``, so a
replacement of the attention that another pack has put there stays and does its part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..cidm_ops.method.infusion import Charge, Rows, infused
from ..cidm_ops.run.infusion import Way
from . import patches
from .host import text_sites

CHARGES = "cidm_infusion"  # what a text carries, in the dict of a CONDITIONING; the key of the wrappers too


@dataclass
class Streams:
    """The state of one patched MODEL: what each text of this step carries, by the host's id of it."""

    way: Way
    layers: dict[str, str]  # cross-attention layers and their modules
    first: float  # noise levels between which residuals act
    last: float
    carried: dict[Any, Sequence[Charge]] = field(default_factory=dict)

    def see(self, executor: Callable, base: Any, conds: list, x: Tensor, timestep: Tensor, options: dict) -> Any:
        """A step begins: which of its texts carry what."""
        present = [c for cond in conds for c in cond or [] if c.get(CHARGES)]
        self.carried = {c["uuid"]: longer(c[CHARGES], length_of(c)) for c in present}
        return executor(base, conds, x, timestep, options)

    def forward(self, executor: WrapperExecutor, x: Tensor, t: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A pass through the U-Net, with the foundation's rows behind the others."""
        options = next(a for a in (*args, *kwargs.values()) if isinstance(a, dict) and "uuids" in a)
        chunks = [self.carried.get(uuid, ()) for uuid in options["uuids"]]
        if not any(chunks) or not self.last <= float(options["sigmas"].max()) <= self.first:
            return executor(x, t, context, *args, **kwargs)
        count, each = len(x), len(x) // len(chunks)
        having = [i for i, charges in enumerate(chunks) if charges]
        rows, again = [], []
        for number, i in enumerate(having):
            at = slice(i * each, (i + 1) * each)
            dual = self.way.stream == "dual"
            foundation = slice(count + number * each, count + (number + 1) * each) if dual else at
            rows.append(Rows(at, foundation, [c.to(x.device) for c in chunks[i]]))
            again += list(range(count))[at] if dual else []
        if again:
            twice = [twofold(value, again, count, having) for value in (x, t, context, *args)]
            x, t, context, args = *twice[:3], tuple(twice[3:])
            kwargs = {key: twofold(value, again, count, having) for key, value in kwargs.items()}
        unet: Any = executor.class_obj
        layers = {name: unet.get_submodule(module) for name, module in self.layers.items()}
        with infused(layers, rows, x.shape[-2], x.shape[-1], keys=self.way.stream == "released_code"):
            return executor(x, t, context, *args, **kwargs)[:count]


def streaming(model: ModelPatcher, way: Way) -> ModelPatcher:
    """A clone of the model that paints texts with residuals as ``way`` says; a text without is read as ever.

    Raises ``ValueError`` for a model that weighs concepts by rows or regions.
    """
    wrappers = model.get_wrappers(WrappersMP.DIFFUSION_MODEL, "cidm")
    if any(wrapper is not patches._read_layers for wrapper in wrappers):
        raise ValueError("this model has concepts beside its layers or in regions: give Apply Infusion the plain model")
    sampling = model.get_model_object("model_sampling")
    streams = Streams(way, text_sites(model), sampling.percent_to_sigma(way.start), sampling.percent_to_sigma(way.end))
    patched = model.clone()
    # functions, not methods: cloning a model copies the object of a method with it
    for kind, wrapper in (
        (WrappersMP.CALC_COND_BATCH, lambda *args, **kwargs: streams.see(*args, **kwargs)),
        (WrappersMP.DIFFUSION_MODEL, lambda *args, **kwargs: streams.forward(*args, **kwargs)),
    ):
        patched.remove_wrappers_with_key(kind, CHARGES)
        patched.add_wrapper_with_key(kind, CHARGES, wrapper)
    return patched


def twofold(value: Any, again: list[int], count: int, chunks: list[int]) -> Any:
    """An argument of the U-Net with rows ``again`` behind its ``count`` rows: tensors, ControlNet's lists, and the host's options, which
    tell other packs how a batch is divided.
    """
    if isinstance(value, Tensor):
        return torch.cat([value, value[again]]) if value.ndim and len(value) == count else value
    if isinstance(value, dict) and "uuids" in value:
        divided = {key: [*value[key], *(value[key][i] for i in chunks)] for key in ("cond_or_uncond", "uuids")}
        return {**value, **divided}
    if isinstance(value, dict):
        return {key: twofold(entry, again, count, chunks) for key, entry in value.items()}
    if isinstance(value, list):
        return [twofold(entry, again, count, chunks) for entry in value]
    return value


def length_of(cond: dict) -> int:
    """Tokens of a text, with what other nodes have put behind it."""
    if patches.CONTEXT in cond:
        return cond[patches.CONTEXT].shape[-2]
    return cond["model_conds"]["c_crossattn"].cond.shape[1]


def longer(charges: Sequence[Charge], length: int) -> list[Charge]:
    """Charges of a text that other nodes have made longer: what is behind it carries nothing."""
    return [Charge(c.residuals, torch.nn.functional.pad(c.marks, (0, length - len(c.marks))), c.mask) for c in charges]


def carrying(conditioning: list, charges: Sequence[Charge]) -> list:
    """A CONDITIONING whose texts carry charges."""
    return [[states, {**more, CHARGES: list(charges)} if charges else more] for states, more in conditioning]
