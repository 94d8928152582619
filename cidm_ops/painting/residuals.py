"""Infusion's residuals in the cross-attention of one call."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..concept_text import plans_of
from ..hub import Attention
from ..method.attention import word_attention
from ..method.infusion import KEY, VALUE, infused_value, infusion
from ..row_plan import RowPlan, TokenResidual
from .call import Call
from .rows import has_residuals
from .scope import repeat_mask

RegionKeysAndValues = Callable[[Attention, Sequence[tuple[int, int]]], tuple[Tensor, Tensor]]


class Residuals:
    """The residuals that rows of one call carry, if any act. ``of_regions`` gives keys and values of what rows read in regions."""

    def __init__(self, call: Call, of_regions: RegionKeysAndValues, acting: bool):
        self.call, self.run, self.rows, self.of_regions = call, call.run, call.rows, of_regions
        self.carried = self.rows_that_carry() if acting else []

    def rows_that_carry(self) -> list[tuple[list[int], list[int], RowPlan]]:
        """Rows that carry the same residuals, the rows whose attention they take, and their plan."""
        found: dict[Hashable, tuple[list[int], list[int], RowPlan]] = {}
        for number, row in enumerate(self.rows):
            if has_residuals(row.plan) and row.plan and not row.job.foundation:
                rows, sources, _ = found.setdefault((row.plan.key, row.job), ([], [], row.plan))
                rows.append(number)
                sources.append(row.source)
        return [*found.values()]

    def add_to(self, at: Attention, out: Tensor) -> Tensor:
        """``out [B, T, C]`` in which rows have what they take from their foundation and their residuals."""
        value, new = f"{at.name}.{VALUE}", None
        for rows, sources, plan in self.carried:
            carried = [(0, r) for r in plan.residuals]
            for u, region in enumerate(plan.regions, 1):
                carried += [(u, r) for own in plans_of(region) if own for r in own.residuals]
            acting = [(u, r) for u, r in carried if value in r.residuals]
            if rows == sources and not acting:
                continue
            total = out[sources]
            for u, r in acting:
                k = at.k[sources] if not u else self.of_regions(at, [(b, u) for b in sources])[0]
                attention = word_attention(at.q[sources], k, r.marks, at.heads)
                total = total + infusion(attention * self.reach(r, u, rows, attention), r.residuals[value]).to(out)
            new = out.clone() if new is None else new
            new[rows] = total
        return out if new is None else new

    def reach(self, residual: TokenResidual, region: int, rows: Sequence[int], like: Tensor) -> Tensor | float:
        """How far a residual acts on the tokens, ``[B, 1, T]``: by the share of its text there, and by its mask."""
        acting: Tensor | float = 1.0
        if self.call.regional:
            height, width = self.call.grid
            acting = torch.stack([self.run.shares_of(self.rows[b], height, width, like)[region] for b in rows])[:, None]
        if residual.mask is not None:
            cells = F.interpolate(residual.mask[None, None].float(), tuple(self.call.grid), mode="area").flatten()
            acting = acting * cells.to(like)
        return acting

    def change_keys(self, name: str, k: Tensor) -> Tensor:
        """Return the keys ``[B, N, C]`` of a layer with the residuals of the released code in them."""
        if not any(f"{name}.{KEY}" in r.residuals for *_, plan in self.carried for r in plan.residuals):
            return k
        k = k.clone()
        for rows, _, plan in self.carried:
            k[rows] = keyed_text(name, k[rows], plan)
        return k


def keyed_text(name: str, k: Tensor, plan: RowPlan | None) -> Tensor:
    """Keys ``[B, N, C]`` of one text with the residuals of the released code."""
    for residual in plan.residuals if plan else ():
        if (own := residual.residuals.get(f"{name}.{KEY}")) is not None:
            k = infused_value(k, repeat_mask(residual.marks, k.shape[1]), own)
    return k
