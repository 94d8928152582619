"""The state of one run of a sampler on a model with concepts beside it: what is the same in every step is computed once and kept."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..concept_text import plans_of
from ..lowrank import Stack
from ..method.aggregation import count_once, route, weights_in
from ..method.blending import blend_weights
from ..method.finding import regions_from_attention
from ..method.regions import NOWHERE, AttentionPartition, RegionMask, shares
from .rows import ALL, NONE, Row
from .scene import Scene
from .scope import acts_everywhere, limit_to_scope

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # q [B, T, C], k and v [B, N, C], heads


@dataclass(frozen=True)
class Beside:
    """The factors of one layer on their device: their stack, the weights of its ranks ``[P, U + 1, R]``, whose they are, which of the
    scene's stacks they belong to, and ``key``, which layers with the same weights share. ``uniform``: all regions have the same weights;
    ``said``: the global prompt has some; ``reads_text``: the layer reads texts.
    """

    stack: Stack
    weights: Tensor
    owners: Sequence[int]
    number: int
    key: int
    uniform: bool
    said: bool
    reads_text: bool


class RunState:
    """The state of one run. ``layers`` are the names of the cross-attention layers in order, ``attend`` computes attention, ``level_of``
    gives the noise level at a part of the sampling. Find Regions moves ``masks``: alike for all images, or one list for each.
    """

    def __init__(self, scene: Scene, layers: Sequence[str], attend: Attend, level_of: Callable[[float], float]):
        self.scene, self.layers, self.attend = scene, layers, attend
        self.routes = [route(limit_to_scope(stack.concepts, stack.scope)) for stack in scene.stacks]
        self.by_token = [not acts_everywhere(stack.concepts, stack.scope) for stack in scene.stacks]
        self.sought = {u: level_of(mask.sought) for u, mask in enumerate(scene.masks, 1) if mask.sought}
        self.residuals = level_of(scene.infusion.start), level_of(scene.infusion.end)
        self.starts = [level_of(stack.start) for stack in scene.stacks]
        woven = scene.template.how if scene.template else None
        self.layout_until = (level_of(woven.attention), level_of(woven.residual)) if woven else None
        self.refers = (level_of(scene.reference.how.start), level_of(scene.reference.how.end)) if scene.reference else None
        how = scene.estimation
        self.passes = (level_of(how.start), level_of(how.end), level_of(how.bootstrap)) if how else None
        self.placed: dict[tuple[torch.device, torch.dtype], dict[str, list[Beside]]] = {}
        self.begin()

    def begin(self) -> None:
        """A run begins or ends: forget texts, and what was found."""
        self.masks: list[Sequence[RegionMask]] = [self.scene.masks]
        self.seen: dict[int, Tensor] = {}  # attention to the words of regions that are sought [P, H, W]
        self.shares: dict[Hashable, Tensor] = {}
        self.partitions: dict[Hashable, AttentionPartition] = {}
        self.scales: dict[Hashable, Tensor] = {}  # weights of ranks, by token
        self.texts: dict[Hashable, tuple[Tensor, Tensor]] = {}  # keys and values of the texts of regions
        self.blends: dict[tuple[int, int], Tensor] = {}
        self.guided: dict[tuple[int, int], Tensor] = {}

    def place(self, masks: list[Sequence[RegionMask]]) -> None:
        """Put the regions somewhere: alike in all images, or one list of masks for each."""
        self.masks = masks
        for known in (self.shares, self.partitions, self.scales, self.texts, self.blends, self.guided):
            known.clear()

    def find(self) -> None:
        """Put the regions that are sought where the images looked at their words."""
        found = [regions_from_attention(maps) for maps in torch.stack(list(self.seen.values()), 1)]
        at = {u: i for i, u in enumerate(self.seen)}
        self.place([[replace(m, mask=each[at[u]]) if u in at else m for u, m in enumerate(self.scene.masks, 1)] for each in found])
        self.seen = {}

    def words_of(self, row: Row, region: int) -> Tensor:
        """Return where the words of the concepts that act in a region stand in its text, ``[N]``.

        Raises ``ValueError`` if it has none of them.
        """
        assert row.plan is not None
        text = row.plan.regions[region - 1]
        (plan,) = plans_of(text)
        acting = {
            c.name
            for s in self.scene.stacks
            for g, c in enumerate(s.concepts)
            if s.weights[:, -1 if s.weights.shape[1] == 1 else region, :, g].any()
        }
        masks = [mask for name, mask in (plan.token_masks if plan else {}).items() if name in acting]
        if not masks:
            raise ValueError(f"region {region} is to be found by its concept, and its text has none: write <name> into it, or draw it")
        return torch.stack(masks).amax(0)

    def besides(self, x: Tensor) -> dict[str, list[Beside]]:
        """The factors of every layer, on the device and in the type of ``x``."""
        if (wanted := (x.device, x.dtype)) not in self.placed:
            known: dict[Hashable, tuple[int, Tensor]] = {}
            made: dict[str, list[Beside]] = {}
            for number, routes in enumerate(self.routes):
                for name, own in routes.items():
                    stack = own.to(x).stack
                    beside = self.scene.stacks[number]
                    every = weights_in(beside.weights.to(x.device), list(self.layers), name)  # [P, U + 1, G]
                    every = count_once(beside.concepts, every)
                    weights = stack.spread(every[..., list(own.owners)])
                    same = (number, tuple(own.owners), tuple(weights.flatten().tolist()))
                    key, weights = known.setdefault(same, (len(known), weights))
                    uniform, said = bool((weights == weights[:, :1]).all()), bool(weights[:, 0].any())
                    made.setdefault(name, []).append(Beside(stack, weights, own.owners, number, key, uniform, said, own.reads_text))
            self.placed[wanted] = made
        return self.placed[wanted]

    def shares_of(self, row: Row, height: int, width: int, like: Tensor) -> Tensor:
        """The shares ``[U + 1, T]`` of a row's tokens in the global text and in each region, on a grid of ``height x width`` cells."""
        image, region = (row.image if len(self.masks) > 1 else 0), self.region_of(row)
        key = (image, region, height, width, like.device, like.dtype)
        if key not in self.shares:
            masks = [m if region in (ALL, u) else replace(m, mask=NOWHERE) for u, m in enumerate(self.masks[image], 1)]
            self.shares[key] = shares(masks, height, width).to(like)
        return self.shares[key]

    def region_of(self, row: Row) -> int:
        """Which regions a row has."""
        return row.job.region if row.composed or self.scene.negative else NONE

    def mark_of(self, row: Row) -> Hashable:
        """Rows with one mark have their tokens in the same places."""
        return self.region_of(row), row.image if len(self.masks) > 1 else 0

    def blend_weights(self, height: int, width: int) -> Tensor:
        """How predictions of passes are blended, ``[1 or P, U + 1, H, W]``."""
        how = self.scene.estimation
        assert how is not None
        if (key := (height, width)) not in self.blends:
            each = [blend_weights(m, height, width, alpha=how.alpha, overlap=how.overlap, feather=how.feather) for m in self.masks]
            self.blends[key] = torch.stack(each)
        return self.blends[key]

    def asleep(self, sigma: float) -> frozenset[int]:
        """The scene's stacks, by number, that do not act yet at this noise level."""
        return frozenset(number for number, start in enumerate(self.starts) if sigma > start)

    def guidance(self, x: Tensor) -> Tensor:
        """How many times the sampler's guidance each cell of latents ``x [B, C, H, W]`` gets, ``[1 or P, 1, H, W]``: 1, and in regions the
        scene's, by their shares.
        """
        if (key := (x.shape[-2], x.shape[-1])) not in self.guided:
            inside = torch.stack([1 - shares(masks, *key)[0] for masks in self.masks])
            self.guided[key] = (1 + (self.scene.guidance - 1) * inside).unflatten(1, key)[:, None]
        return self.guided[key].to(x)
