"""How low-rank factors begin."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...lowrank import LowRank
from ...method.consolidation import orthogonal_downs


def kaiming(rank: int, width: int, generator: torch.Generator) -> Tensor:
    """Returns a down factor ``[rank, width]``, Kaiming uniform with a = sqrt(5)."""
    return torch.empty(rank, width).uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)


def check_rank(rank: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ``ValueError`` naming the narrowest layer if it is narrower than the rank."""
    narrow = min(shapes, key=lambda n: min(shapes[n]))
    if rank > min(shapes[narrow]):
        raise ValueError(f"rank {rank}: {narrow} is {min(shapes[narrow])} wide, expected at most that")


def begin_factors(
    shapes: Mapping[str, tuple[int, ...]], rank: int, generator: torch.Generator, apart_from: Sequence[Mapping[str, LowRank]] | None = None
) -> tuple[nn.ParameterList, nn.ParameterList]:
    """Returns the down factors ``[rank, in]`` and the up factors ``[out, rank]``, which are 0, of layers of these shapes ``(out, in)``.
    With ``apart_from``, the factors of earlier concepts, the down factors are orthogonal to theirs and do not learn.
    """
    if apart_from is None:
        downs = {name: kaiming(rank, width, generator) for name, (_, width) in shapes.items()}
    else:
        downs = orthogonal_downs(apart_from, {name: width for name, (_, width) in shapes.items()}, rank, generator)
    ups = nn.ParameterList([nn.Parameter(torch.zeros(out, rank)) for out, _ in shapes.values()])
    return nn.ParameterList([nn.Parameter(downs[name], requires_grad=apart_from is None) for name in shapes]), ups
