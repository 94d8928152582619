"""Attention calibration: several concepts of one picture are kept apart by their attention maps (DisenDiff, Zhang et al. 2024).

Each concept has a free modifier and a noun: the modifier is to look where its noun looks (*binding*), and nouns are to look at different
places, and at much of them (*separation*). A map is the mean over heads and layers of one resolution, from 0 to 1. What the paper leaves
out and its code has, the range of the maps and the kernel's factor, is as in the code; so is the mean over pairs of three and more nouns.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

SIGMA = 0.5  # of the smoothing, in cells
TOKENS = 16 * 16  # of the resolution whose maps are calibrated: as in the paper for SD 1.5 at 512 pixels, else the nearest that there is


def nearest_resolution(tokens: Sequence[int]) -> int:
    """Returns which number of image tokens, of those that layers have, is nearest to that of the paper: by ratio, the finer of two.

    Raises ``ValueError`` if there are none.
    """
    if not tokens:
        raise ValueError("no cross-attention layer left a map: expected layers of at most 1024 image tokens")
    return min(tokens, key=lambda count: (max(count / TOKENS, TOKENS / count), -count))


def stretch(attention: Tensor) -> Tensor:
    """Returns maps ``[..., h, w]`` whose least value is 0 and whose largest is 1; a constant map is 0 everywhere."""
    low, high = attention.amin((-2, -1), keepdim=True), attention.amax((-2, -1), keepdim=True)
    return (attention - low) / (high - low).clamp(min=1e-8)


def smooth(attention: Tensor) -> Tensor:
    """Returns maps ``[N, h, w]`` under a 3 x 3 kernel ``exp(-(x / (2 sigma))^2)`` that sums to 1, reflected at their borders.

    Raises ``ValueError`` for maps of fewer than 2 x 2 cells, which have nothing to reflect.
    """
    if min(attention.shape[-2:]) < 2:
        height, width = attention.shape[-2:]
        raise ValueError(f"maps of {width} x {height} cells: expected at least 2 x 2; learn from a larger picture")
    steps = torch.arange(-1, 2, device=attention.device, dtype=attention.dtype)
    line = torch.exp(-((steps / (2 * SIGMA)) ** 2))
    kernel = torch.outer(line, line)
    padded = F.pad(attention[:, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]


def soft_iou(a: Tensor, b: Tensor) -> Tensor:
    """Returns how far maps ``[..., h, w]`` in [0, 1] cover each other: ``(I + 1) / (sum a + sum b - I + 1)`` with ``I = sum a b``."""
    shared = (a * b).sum((-2, -1))
    return (shared + 1) / (a.sum((-2, -1)) + b.sum((-2, -1)) - shared + 1)


def binding(modifiers: Tensor, nouns: Tensor) -> Tensor:
    """Returns ``sum_i 1 - IoU(G(m_i), sg G(c_i)^2)`` for the maps ``[S, h, w]`` of the modifiers and the nouns of S concepts: the modifier
    follows its noun, whose own map gets no gradient from it.
    """
    return (1 - soft_iou(smooth(modifiers), smooth(nouns).square().detach())).sum()


def separation(nouns: Tensor) -> Tensor:
    """Returns the mean of ``IoU(G(c_i)^2, G(c_j)^2)`` over pairs of the maps ``[S, h, w]`` of S nouns; 0 of one.

    The union below the line grows the maps: the overlap alone would shrink them.
    """
    strong = smooth(nouns).square()
    pairs = [soft_iou(strong[i], strong[j]) for i, j in combinations(range(len(strong)), 2)]
    return torch.stack(pairs).mean() if pairs else nouns.new_zeros(())


def calibration(modifiers: Tensor, nouns: Tensor) -> Tensor:
    """Returns binding plus separation (Eq. 6 of the paper, without its weight) for maps ``[S, h, w]`` in [0, 1]."""
    return binding(modifiers, nouns) + separation(nouns)
