"""How low-rank factors begin."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def kaiming(rank: int, width: int, generator: torch.Generator) -> Tensor:
    """Returns a down factor ``[rank, width]``, Kaiming uniform with a = sqrt(5)."""
    return torch.empty(rank, width).uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)


def check_rank(rank: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ``ValueError`` naming the narrowest layer if it is narrower than the rank."""
    narrow = min(shapes, key=lambda n: min(shapes[n]))
    if rank > min(shapes[narrow]):
        raise ValueError(f"rank {rank}: {narrow} is {min(shapes[narrow])} wide, expected at most that")
