"""A wish granted: candidates painted with a concept of a bank, or with a picture that is referred to, of which the best is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone
from ..bank.bank import Bank
from ..engines.towers import Tower
from ..measure.picking import BOUND, LIKENESS, Pick, pick
from ..measure.scores import embed_all
from ..method.reference import fitted
from ..method.regions import RegionMask, box_mask
from ..painting.compose import AggregationConfig, ParsedPrompt, encode
from ..painting.config import ReferenceConfig
from ..painting.paint import SamplingConfig, paint, unit_noise
from ..painting.reference import reference_of
from ..painting.scene import Reference
from ..painting.wish import Wish, regions_of

LESS = 0.15  # of identity, when the best candidate does not show what was asked for


@dataclass(frozen=True)
class Order:
    """What is painted: a ``wish``, pictures ``[3, H, W]`` in [-1, 1] of what it is about, each with a mask ``[1, H, W]`` or none with one,
    how many candidates, how they are sampled, and how they are picked. Raises ``ValueError`` for a bound or a part that is none.
    """

    wish: Wish
    images: Sequence[Tensor] = ()
    masks: Sequence[Tensor] = ()
    count: int = 4
    steps: int = 25
    guidance: float = 5.0
    text_guidance: float = 0.0
    likeness: float = LIKENESS
    bound: float = BOUND

    def __post_init__(self) -> None:
        if not -1 <= self.bound <= 1:
            raise ValueError(f"bound {self.bound:g}: expected a cosine with the words, from -1 (take any) to 1")
        if not 0 <= self.likeness <= 1:
            raise ValueError(f"likeness {self.likeness:g}: expected a part of the score, from 0 (words alone) to 1 (likeness alone)")
        ReferenceConfig(self.wish.identity)


@dataclass(frozen=True)
class Granted:
    """The candidates ``[N, 3, H, W]`` in [-1, 1], the number of the ``best``, and how it was picked, if it was."""

    pictures: Tensor
    best: int
    pick: Pick | None


@torch.no_grad()
def grant(
    backbone: Backbone,
    bank: Bank,
    order: Order,
    tower: Tower | None,
    size: int,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> tuple[Granted, list[str]]:
    """Paint the candidates of an order with seeds that count up, and once more with less identity if the best one does not obey.

    Returns what came of it, and warnings.
    """
    wish, warnings = order.wish, []
    refers, reason = bool(order.images), ""
    if refers and (owner := next((owner for _, owner in bank.vocabulary.parts(wish.subject) if owner), None)):
        refers, reason = False, f"<{owner}> is in the bank, so it is painted with its concept, and the picture serves to pick alone"
    if not order.images and not bank.read(wish.prompt).strengths:
        reason = "there is neither a picture nor a concept of what the wish is about, so it is painted from its words"
    if refers and not wish.identity:
        reason = "with identity 0 the picture is not followed, and serves to pick alone"
    images = [fitted(image, size, size) for image in order.images]
    shown, told = candidates(backbone, bank, order, images if refers and wish.identity else [], size, seed, on_step)
    warnings += [*filter(None, [reason]), *told]
    chosen = picked(tower, shown, images, wish, bank, order)
    if chosen and not chosen.obeys(order.bound) and refers and wish.identity:
        less = max(wish.identity - LESS, 0.0)
        said = f"no candidate shows the words by {order.bound:g}, so they were painted once more with identity {less:g}"
        again, _ = candidates(backbone, bank, replace(order, wish=replace(wish, identity=less)), images, size, seed, on_step)
        shown, warnings = torch.cat([shown, again]), [*warnings, said]
        chosen = picked(tower, shown, images, wish, bank, order)
    if chosen is None and len(shown) > 1:
        warnings.append("there is no image tower, so the first candidate was taken: give one with --tower")
    return Granted(shown, chosen.best if chosen else 0, chosen), list(dict.fromkeys(warnings))


def candidates(
    backbone: Backbone,
    bank: Bank,
    order: Order,
    images: Sequence[Tensor],
    size: int,
    seed: int,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> tuple[Tensor, list[str]]:
    """Candidates ``[N, 3, H, W]`` of an order that refer to ``images``, if there are any, and warnings."""
    wish, found, warnings = order.wish, [], []
    config = SamplingConfig(
        order.steps,
        order.guidance,
        wish.negative,
        AggregationConfig(),
        reference=reference_to(backbone, order, images) if images else None,
        text_guidance=order.text_guidance if images else 0.0,
    )
    regions = [(text, RegionMask(box_mask(*box))) for text, box in regions_of(wish, bank.vocabulary)]
    prompt = bank.vocabulary.plain(wish.prompt) if regions else wish.prompt
    for number in range(order.count):
        noise = unit_noise(backbone.family, seed + number, 1, size, size)

        def show(step: int, steps: int, number: int = number) -> None:
            on_step(number * steps + step, order.count * steps)

        pictures, told = paint(backbone, bank, prompt, noise, config, regions, show)
        found.append(pictures.float().cpu())
        warnings += told
    return torch.cat(found), warnings


def reference_to(backbone: Backbone, order: Order, images: Sequence[Tensor]) -> Reference:
    """What an order refers to: pictures ``[3, H, W]`` in [-1, 1] of one size."""
    latents = torch.cat([backbone.encode_image(image[None].to(backbone.device)) for image in images])
    height, width = images[0].shape[-2:]
    masks = torch.stack([fitted(mask, height, width)[0] for mask in order.masks]) if order.masks else None
    how = ReferenceConfig(order.wish.identity, *order.wish.when)
    return reference_of(backbone, latents, encode(backbone, ParsedPrompt("")).rows, how, masks)


def picked(tower: Tower | None, shown: Tensor, images: Sequence[Tensor], wish: Wish, bank: Bank, order: Order) -> Pick | None:
    """The best of candidates ``[N, 3, H, W]``; ``None`` where nobody can tell."""
    if tower is None or not len(shown):
        return None
    caption = tower.captions([bank.vocabulary.plain(wish.prompt)])
    if caption is None and not images:
        return None
    seen, references = (embed_all(tower, [*part]) if len(part) else None for part in (shown, images))
    read = None if caption is None else F.normalize(tower.shown(shown), dim=-1)
    words = None if caption is None else F.normalize(caption, dim=-1)
    return pick(seen, references, read, words, order.likeness)
