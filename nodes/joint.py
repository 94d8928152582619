"""The host's transformers as regions see them: where their layers, positions and attention are, on every version of it.

All attention of these models asks for one override among the host's options, whatever kernel computes it; the rest are hooks of
``joint_sites``. Another pack's override is kept, and asked for each piece.
"""

import inspect
from collections.abc import Callable
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ..cidm_ops.joint_sites import AttentionSlot, JointSites
from ..cidm_ops.models.family import Family
from ..cidm_ops.models.module import block_in
from .host import known_family, layout

OVERRIDE = "optimized_attention_override"  # among the host's options


class HostTransformer:
    """The places of a MODEL whose blocks join text and image."""

    def __init__(self, model: ModelPatcher):
        self.family: Family = known_family(model)
        self.layers = layout(model)
        self.names = self.family.sites(dict.fromkeys(map(self.family.block_of, self.layers)), "cross", "joint")
        self.names.sort(key=self.family.place)

    def sites(self, unet: nn.Module) -> JointSites:
        """The places in a model that is loaded."""
        family, modules = self.family, dict(unet.named_modules())
        own = {block: block_in(at.module) for layer, at in self.layers.items() if (block := family.block_of(layer))}
        text = family.host.text
        return JointSites.of(
            family,
            {block: modules[name] for block, name in own.items()},
            {at.module: modules[at.module] for at in self.layers.values()},
            self.layers,
            positions=modules[text.positions] if text.positions else None,
            restart=text.restart,
            embedder=modules[text.embedder] if text.embedder else None,
            pad=(lambda: getattr(unet, text.pad)) if text.pad else None,
            multiple=text.multiple,
        )

    def around(self, executor: WrapperExecutor, slot: AttentionSlot, context: Tensor) -> Callable[..., Tensor]:
        """Return ``executor`` for a call with a text of its own in place of ``context [B, N, C]``, with its attention asked of the slot."""
        text = self.family.host.text

        def execute(x: Tensor, t: Tensor, joined: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            bound = inspect.signature(executor.original).bind(x, t, joined, *args, **kwargs)
            given = Arguments(bound)
            options = given["transformer_options"]
            given["transformer_options"] = {**options, OVERRIDE: override(slot, options.get(OVERRIDE))}
            if joined.shape[1] != context.shape[1]:
                if beside := next((name for name in text.pictures if given[name] is not None and len(given[name])), ""):
                    raise ValueError(
                        f"{self.family.title} is given other pictures beside regions ({beside}), whose texts and places are numbered along "
                        "with its own: take them off, or the regions"
                    )
                if text.mask and given[text.mask] is not None:
                    raise ValueError(
                        f"a text for {self.family.title} has tokens that are masked ({text.mask}), and regions beside it: encode it by a "
                        "node of its own, without another of another length"
                    )
            if text.count and given[text.mask] is None:
                given[text.count] = joined.shape[1]
            return executor(*bound.args, **bound.kwargs)

        return execute


def ask_wrappers(key: str, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
    """What a model answers, with the wrappers of a ``key`` around its forward pass, which the host asks on most models by itself."""
    unet, kind = executor.class_obj.diffusion_model, WrappersMP.DIFFUSION_MODEL
    before, forward = vars(unet).get("forward"), unet.forward

    def asked(x: Tensor, t: Tensor, context: Tensor, *more: Any, **named: Any) -> Tensor:
        options = named["transformer_options"]
        wrappers = dict(options["wrappers"][kind])
        own = wrappers.pop(key)
        named["transformer_options"] = {**options, "wrappers": {**options["wrappers"], kind: wrappers}}
        return WrapperExecutor.new_class_executor(forward, unet, own).execute(x, t, context, *more, **named)

    unet.forward = asked
    try:
        return executor(*args, **kwargs)
    finally:
        del unet.forward
        if before is not None:
            unet.forward = before


class Arguments:
    """What a model is called with, by name, those in ``**kwargs`` included."""

    def __init__(self, bound: inspect.BoundArguments):
        self.named = bound.arguments
        kind = next((p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
        self.more: dict[str, Any] = self.named.setdefault(kind, {}) if kind else {}
        self.parameters = {p.name for p in bound.signature.parameters.values()} - {kind}

    def __getitem__(self, name: str) -> Any:
        return (self.named if name in self.parameters else self.more).get(name)

    def __setitem__(self, name: str, value: Any) -> None:
        (self.named if name in self.parameters else self.more)[name] = value


def override(slot: AttentionSlot, before: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """The host's override of attention that asks the slot, in front of the one that was there ``before``."""

    def attention(
        func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **how: Any
    ) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            if before is not None:
                return before(func, q, k, v, heads, mask=mask, **how)
            return func(q, k, v, heads, mask=mask, **how)

        if how.get("skip_output_reshape") or not (how.get("skip_reshape") or q.shape == k.shape):
            return attend(q, k, v, mask)  # no block of these models
        if how.get("skip_reshape"):
            return slot(q, k, v, mask, attend)

        def side_by_side(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            q, k, v = (x.transpose(1, 2).flatten(2) for x in (q, k, v))
            return attend(q, k, v, mask)

        # Stable Diffusion 3.5, and Qwen-Image of older hosts, give heads side by side, the former those of values apart.
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
        return slot(q, k, v, mask, side_by_side)

    return attention
