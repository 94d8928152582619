"""How strongly a concept and the rest of its caption depend on each other, which learning should leave as it is (ACCORD, ICLR 2026: the
dependence term, DDLoss).

With ``p`` the concept ("a <dog>"), ``g`` the rest of the caption ("on the beach") and ``e`` the model's prediction, ``e(p, g)`` lies as far
from what either says alone as it does from the empty text, if they say things that do not depend on each other.
"""

from torch import Tensor


def dependence(whole: Tensor, alone: Tensor, rest: Tensor, nothing: Tensor, share: Tensor) -> Tensor:
    """``share |mean (e(p, g) - e(p))^2 + mean (e(p, g) - e(g))^2 - mean (e(p, g) - e(0))^2|`` of each picture, ``[B]``.

    ``whole``, ``alone``, ``rest`` and ``nothing`` are the predictions ``[B, C, h, w]`` of the caption, the concept, the rest and the empty
    text; no gradient goes into the last three. ``share [B]`` is the timestep as a part of all.
    """

    def apart(single: Tensor) -> Tensor:
        return (whole - single.detach()).square().mean((1, 2, 3))

    return share * (apart(alone) + apart(rest) - apart(nothing)).abs()
