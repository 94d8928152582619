"""Rows of a call that refer to a reference: in self-attention they see the tokens of its pictures too."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..hub import Attention
from ..method.reference import attend_to, shown_tokens, with_reference
from .call import Call


class Referring:
    """The self-attentions of one call in which a reference is seen: the ``rows`` that refer to it, and how strongly, if any do now."""

    def __init__(self, call: Call, acting: bool):
        self.call, self.run = call, call.run
        self.rows = self.rows_that_refer() if acting else {}

    def rows_that_refer(self) -> dict[int, float]:
        """The rows that refer to the reference, and how strongly; none where none of its pictures is in the call."""
        reference = self.run.scene.reference
        if not reference or not any(row.job.reference for row in self.call.rows):
            return {}
        found = {b: row.plan.refers for b, row in enumerate(self.call.rows) if row.plan and not row.job.guest}
        return {b: reference.how.strength * part for b, part in found.items() if part}

    def self_attentions(self) -> dict[str, Any]:
        """The self-attentions in which the reference is seen."""
        reference = self.run.scene.reference
        found = {}
        for name in reference.layers if reference else ():
            block = next(block for block in self.call.sites.blocks if name.startswith(f"{block}."))
            found[name] = self.call.sites.blocks[block].get_submodule(name.removeprefix(f"{block}."))
        return found

    def answer(self, at: Attention, out: Tensor) -> Tensor:
        """The output ``[B, T, C]`` of a self-attention, in which rows that refer to the reference have seen its tokens."""
        self.call.check_rows(len(out), "a reference")
        taking = [*self.rows]
        guests = tuple(self.tokens_of_reference(part, taking) for part in (at.k, at.v))
        seen = attend_to(self.run.attend, at.q[taking], at.k[taking], at.v[taking], (guests[0], guests[1]), at.heads)
        out = out.clone()
        out[taking] = with_reference(out[taking], seen, torch.tensor([*self.rows.values()]))
        return out

    def tokens_of_reference(self, every: Tensor, taking: Sequence[int]) -> Tensor:
        """The keys or values ``[P, N, C]`` of all its pictures, of ``every [B, T, C]``, for each of the rows that take them.

        Raises ``ValueError`` for tokens that nobody knows the places of.
        """
        reference = self.run.scene.reference
        assert reference is not None
        found = []
        for number in range(len(reference.latents)):
            at = {row.image: b for b, row in enumerate(self.call.rows) if row.job.reference == number + 1}
            own = every[[at[self.call.rows[b].image] for b in taking]]
            if reference.masks is not None:
                height, width = self.call.grid
                if height * width != own.shape[1]:
                    raise ValueError(
                        f"a self-attention layer has {own.shape[1]} tokens for {height} x {width} cells: another node has merged them, and "
                        "nobody knows which show the subject of the reference; take it off this model, or the mask"
                    )
                own = own[:, shown_tokens(reference.masks[number], height, width).to(own.device)]
            found.append(own)
        return torch.cat(found, 1)
