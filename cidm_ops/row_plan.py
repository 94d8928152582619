"""What one row of a text means to the model beside its numbers: what layers and regions read, where concepts act, and residuals."""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

REFERENCE = "<reference>"  # likewise: that a text refers to the picture of Reference Attention, and how far
END_OF_TEXT = ""  # among the token masks of a plan: from the end of the text on, padding included; no concept has that name


@dataclass(frozen=True)
class TokenResidual:
    """Infusion's vectors at a class word: ``residuals [C]`` by linear layer (``<layer>.to_v``, ``.to_k``), times their strength;
    ``marks [N]`` is 1 where the word stands in the text; ``mask [H, W]`` in [0, 1] over the image says where they act, everywhere if
    ``None``.
    """

    residuals: Mapping[str, Tensor]
    marks: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device) -> "TokenResidual":
        mask = None if self.mask is None else self.mask.to(device)
        return TokenResidual({n: r.to(device) for n, r in self.residuals.items()}, self.marks.to(device), mask)


@dataclass(frozen=True)
class RowPlan:
    """A plan says what one row of a text means to the model.

    ``layers [L, N, C]``: what each cross-attention layer reads, or, in a transformer, all of them (L is 1); the row itself if ``None``.
    ``token_masks [N]`` by concept name: where the concept's words stand, and under ``END_OF_TEXT`` where the text has ended.
    ``residuals`` act at their tokens. ``regions``: the text of each region of the image, each a ``ConceptText`` of one row. ``key`` tells
    plans apart: equal keys mean equal texts.
    """

    layers: Tensor | None = None
    token_masks: Mapping[str, Tensor] = field(default_factory=dict)
    residuals: tuple[TokenResidual, ...] = ()
    regions: tuple[Tensor, ...] = ()
    key: Hashable = field(default_factory=object)
    casts: dict[tuple[torch.device, torch.dtype], "RowPlan"] = field(init=False, default_factory=dict, compare=False, repr=False)

    @property
    def composed(self) -> bool:
        """Whether concepts are meant to act on this text, rather than on all texts as a LoRA does."""
        return bool(self.token_masks.keys() - {REFERENCE} or self.regions)

    @property
    def refers(self) -> float:
        """How far this text refers to a reference picture, from 0 to 1."""
        mask = self.token_masks.get(REFERENCE)
        return 0.0 if mask is None or not mask.numel() else float(mask.max())

    def at_tokens(self, mask: Callable[[Tensor], Tensor], marks: Callable[[Tensor], Tensor]) -> "RowPlan":
        """Return what the plan says of tokens, alone, with its masks ``[N]`` and the marks ``[N]`` of its residuals changed."""
        return RowPlan(
            token_masks={name: mask(own) for name, own in self.token_masks.items()},
            residuals=tuple(replace(r, marks=marks(r.marks)) for r in self.residuals),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "RowPlan":
        """The plan beside a text of that device and type; the last one that was made is kept, since a sampler asks in every step."""
        wanted = (device, dtype)
        if wanted not in self.casts:
            self.casts.clear()
            self.casts[wanted] = replace(
                self,
                layers=None if self.layers is None else self.layers.to(device, dtype),
                token_masks={name: mask.to(device) for name, mask in self.token_masks.items()},
                residuals=tuple(r.to(device) for r in self.residuals),
                regions=tuple(region.to(device, dtype) for region in self.regions),
            )
        return self.casts[wanted]


def unite(plans: Iterable[RowPlan]) -> RowPlan:
    """Put into one what several plans say of the same tokens: the larger of two masks of a concept, and all residuals."""
    masks: dict[str, Tensor] = {}
    residuals: list[TokenResidual] = []
    for plan in plans:
        for name, mask in plan.token_masks.items():
            masks[name] = torch.maximum(masks[name], mask) if name in masks else mask
        residuals += plan.residuals
    return RowPlan(token_masks=masks, residuals=tuple(residuals))
