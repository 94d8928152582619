"""A picture that others refer to while they are painted: the identity path that needs no weights, on any backbone."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backbone import Backbone
from ..concept_text import ConceptText, plain, plans_of
from ..row_plan import REFERENCE, RowPlan
from ..tokens import Text
from .config import ReferenceConfig
from .scene import Reference, Scene

SEED = 0  # of the noise that references are noised with


def reference_of(
    backbone: Backbone, latents: Tensor, text: Tensor, how: ReferenceConfig | None = None, masks: Tensor | None = None
) -> Reference:
    """A reference of R pictures, whose clean ``latents [R, C, h, w]`` are as the model sees them and which read ``text [1, N, C]``. Of each
    the subject is where ``masks [R, H, W]`` is.

    Raises ``ValueError`` for masks of another number of pictures, for one that is empty, and for a model that has no self-attention.
    """
    if masks is not None and len(masks) != len(latents):
        raise ValueError(f"{len(masks)} masks for {len(latents)} reference pictures: give one for each, or none")
    if masks is not None and not bool(masks.flatten(1).any(1).all()):
        raise ValueError("the mask of a reference is empty, so nothing of it would be seen: cover its subject, or leave the mask out")
    family = backbone.family
    layers = tuple(f"{block}.{sub.name}" for block in backbone.blocks for sub in family.sublayers(block) if sub.kind == "self")
    if not layers:
        raise ValueError(f"{family.title} has no self-attention to refer by: take Stable Diffusion 1 or SDXL")
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED))
    return Reference(latents.float().cpu(), noise, text, how or ReferenceConfig(), layers, masks)


def with_reference(scene: Scene, reference: Reference) -> Scene:
    """The scene, with a reference beside it.

    Raises ``ValueError`` for another reference there already, and for what does not go together with one.
    """
    if scene.reference:
        raise ValueError("this model refers to pictures already: give all of them to one Reference Attention, as a batch")
    if scene.template:
        raise ValueError("a template and a reference: expected one of the two, for a template says what layers see")
    if scene.estimation:
        raise ValueError("region noise estimation and a reference: expected one of the two; take preset fast for the regions")
    return replace(scene, reference=reference)


def refer(text: Tensor, amount: float = 1.0) -> ConceptText:
    """The text ``[B, N, C]`` with a mark that it refers to the reference, so far."""
    return ConceptText.of(plain(text), [_marked(plan, text.shape[1], amount) for plan in plans_of(text)])


def refer_by(text: Text) -> Text:
    """A text that ``encode`` made, with that mark."""
    plans: Sequence[RowPlan | None] = text.plans or (None,) * len(text.states)
    return replace(text, plans=tuple(_marked(plan, text.states.shape[2], 1.0) for plan in plans))


def _marked(plan: RowPlan | None, tokens: int, amount: float) -> RowPlan:
    own = plan or RowPlan()
    return replace(own, token_masks={**own.token_masks, REFERENCE: torch.full((tokens,), amount)}, key=object())
