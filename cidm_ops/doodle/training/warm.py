"""A warm start: a network begins with the weights of a smaller one, as far as those go."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def start_from(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put each tensor of ``state`` into the corner of the parameter of its name: more channels keep what they were drawn as, fewer take the
    first.

    Raises ``ValueError`` where no name is known.
    """
    known = {name: p for name, p in module.named_parameters() if name in state and p.ndim == state[name].ndim}
    if not known:
        raise ValueError(f"nothing to start from: none of {len(state)} tensors has a name and rank of this network")
    for name, p in known.items():
        corner = tuple(slice(min(own, given)) for own, given in zip(p.shape, state[name].shape, strict=True))
        p[corner] = state[name][corner].to(p)
