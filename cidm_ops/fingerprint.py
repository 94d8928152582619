"""Which base model is this: the name of its architecture and a short hash of its weights, the same for every engine."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from .models.architecture import Architecture
from .models.family import Family


def architecture(family: Family, cross_attention: Mapping[str, nn.Module]) -> str:
    """The name of a model's architecture, from its family, its layers that read a text of their own and the width of that text."""
    first: Any = next(iter(cross_attention.values()))
    return str(Architecture(family.name, (len(cross_attention),), first.to_k.in_features))


def fingerprint(weights: Sequence[Tensor]) -> str:
    """Twelve hex digits from the signs of ``weights``, which no cast between floating-point types changes.

    Half precision takes the smallest numbers to zero, so it comes first.
    Engines pass the unpatched ``to_k`` weights of the first and the last cross-attention layer.
    """
    signs = hashlib.sha256()
    for weight in weights:
        signs.update(np.packbits((weight.detach().half() > 0).cpu().numpy()).tobytes())
    return signs.hexdigest()[:12]
