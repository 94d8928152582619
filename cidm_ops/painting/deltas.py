"""Concepts beside the layers of the U-Net: every token of every row has its own mixture of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lowrank import LowRank
from ..row_plan import RowPlan
from .call import Call
from .rows import Row
from .scope import acting_at
from .state import Beside


@dataclass(frozen=True)
class Weighted(LowRank):
    """Factors whose ranks are weighed by ``weigh(h)``, of the shape of what comes between them, ``h [B, ..., r]``."""

    weigh: Callable[[Tensor], Tensor] = lambda h: h

    def scale_ranks(self, h: Tensor) -> Tensor:
        return self.weigh(h)


class Deltas:
    """What concepts add to the layers in one call."""

    def __init__(self, call: Call):
        self.call, self.run, self.rows = call, call.run, call.rows

    def by_stack(self, x: Tensor) -> list[dict[str, Weighted]]:
        """Return what each of the scene's stacks adds to the layers."""
        found: list[dict[str, Weighted]] = [{} for _ in self.run.scene.stacks]
        for name, stacks in self.run.besides(x).items():
            for own in stacks:
                if own.number in self.call.asleep:
                    continue
                if own.reads_text:
                    if own.said:
                        found[own.number][name] = self.beside(own, self.at_text)
                else:
                    found[own.number][name] = self.beside(own, self.at_tokens)
        return found

    def beside(self, own: Beside, weigh: Callable[[Beside, Tensor], Tensor]) -> Weighted:
        return Weighted(own.stack.up, own.stack.down, own.stack.kernel, weigh=lambda h: weigh(own, h))

    def acts(self, own: Beside, row: Row) -> float:
        """Whether a stack acts on a row at all: never on the template, nor on the reference."""
        return 0.0 if row.job.guest else float(row.composed or self.run.scene.stacks[own.number].negative)

    def of_rows(self, own: Beside) -> Tensor:
        """The weights of ranks that each row has where no region is, ``[B, R]``, or ``[1, R]`` if all have the same."""
        images = [row.image % len(own.weights) for row in self.rows]
        acting = [self.acts(own, row) for row in self.rows]
        key = ("rows", own.key, own.weights.device, own.weights.dtype, *zip(images, acting, strict=True))
        if key not in self.run.scales:
            found = [acts * own.weights[i, 0] for i, acts in zip(images, acting, strict=True)]
            self.run.scales[key] = torch.stack(found[:1] if len({*zip(images, acting, strict=True)}) == 1 else found)
        return self.run.scales[key]

    def at_tokens(self, own: Beside, h: Tensor) -> Tensor:
        """Weigh what comes between the factors of a layer that reads image tokens or feature maps, ``h [B, ..., r]``, by the shares of
        each token in the regions; what stands for a whole image, ``[B, r]``, has the mixture of the global prompt.
        """
        if h.ndim == 2:
            return h * self.of_rows(own)
        if not self.call.regional or own.uniform:
            weights = self.of_rows(own)
            if len(weights) > 1:
                self.call.check_rows(len(h), "concepts that differ from row to row")
            return h * weights.view(len(weights), *[1] * (h.ndim - 2), -1)
        height, width = (h.shape[1], h.shape[2]) if h.ndim == 4 else self.call.grid
        tokens = h.flatten(1, -2)
        weights = self.by_token(own, height, width, h)
        if weights.shape[1] != tokens.shape[1]:
            raise ValueError(
                f"a layer reads {len(h)} x {tokens.shape[1]} tokens of an image of {height} x {width} cells: another node, such as "
                "HyperTile or Tome, has moved them, and nobody knows which of them are in which region; take it off this model, or take "
                "concepts without factors on self-attention"
            )
        self.call.check_rows(len(h), "regions")
        return (tokens * weights).view_as(h)

    def by_token(self, own: Beside, height: int, width: int, like: Tensor) -> Tensor:
        """The weights of ranks at every token, ``[B, T, R]``, or ``[1, T, R]`` if that is alike in all rows."""
        signs = [(self.call.marks[b], row.image % len(own.weights), self.acts(own, row)) for b, row in enumerate(self.rows)]
        key = ("tokens", own.key, like.device, like.dtype, height, width, *signs)
        if key not in self.run.scales:
            first = {sign: row for sign, row in zip(reversed(signs), reversed(self.rows), strict=True)}
            found = {}
            for sign, row in first.items():
                weights = self.acts(own, row) * own.weights[row.image % len(own.weights)]  # [U + 1, R]
                found[sign] = self.run.shares_of(row, height, width, like).mT.to(weights) @ weights
            self.run.scales[key] = torch.stack([found[sign] for sign in (signs if len(found) > 1 else signs[:1])])
        return self.run.scales[key]

    def at_text(self, own: Beside, h: Tensor) -> Tensor:
        """Weigh what comes between the factors of a layer that reads texts, ``h [B, N, r]``, where concepts act on these texts."""
        weights = self.of_rows(own)[:, None]
        if self.run.by_token[own.number]:
            tokens = h.shape[1]
            texts = [(row.plan and row.plan.key, row.image % len(own.weights), self.acts(own, row)) for row in self.rows]
            key = ("text", own.key, h.device, h.dtype, tokens, *texts)
            if key not in self.run.scales:
                self.run.scales[key] = weights * torch.stack([self.acting(own, row.plan, tokens) for row in self.rows])
            weights = self.run.scales[key]
        if len(weights) > 1 or self.run.by_token[own.number]:
            self.call.check_rows(len(h), "concepts that act on some texts or words only")
        return h * weights

    def acting(self, own: Beside, plan: RowPlan | None, tokens: int) -> Tensor:
        """Return where on a text the ranks act, ``[N, R]``."""
        stack = self.run.scene.stacks[own.number]
        at = acting_at(plan.token_masks if plan else {}, stack.concepts, stack.scope, tokens)
        return own.stack.spread(at[:, list(own.owners)].to(own.weights.device))
