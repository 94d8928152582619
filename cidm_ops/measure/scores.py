"""Alignment as cosines in the space of an image tower: with pictures of a concept (CIDM 4.1, "IA") and with captions ("TA")."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

ImageTower = Callable[[Tensor], Tensor]  # pictures [B, 3, H, W] in [-1, 1] to embeddings [B, E]


@torch.no_grad()
def embed(tower: ImageTower, pictures: Tensor) -> Tensor:
    """Unit embeddings ``[B, E]`` of pictures ``[B, 3, H, W]`` in [-1, 1]."""
    return torch.cat([F.normalize(tower(part).float(), dim=-1) for part in pictures.split(32)])


@torch.no_grad()
def embed_all(tower: ImageTower, pictures: Sequence[Tensor]) -> Tensor:
    """Unit embeddings ``[N, E]`` of pictures ``[3, H, W]`` of any shapes; those of one shape go through the tower together."""
    found: dict[int, Tensor] = {}
    for shape in dict.fromkeys(p.shape for p in pictures):
        which = [i for i, p in enumerate(pictures) if p.shape == shape]
        seen = embed(tower, torch.stack([pictures[i] for i in which]))
        found |= dict(zip(which, seen, strict=True))
    return torch.stack([found[i] for i in range(len(pictures))])


def alignments(pictures: Tensor, references: Tensor) -> Tensor:
    """Mean cosine of each picture's embedding ``[N, E]`` with all references ``[M, E]``: ``[N]``, in [-1, 1]."""
    return pictures @ references.mean(0)


def image_alignment(pictures: Tensor, references: Tensor) -> float:
    """Mean cosine over all pairs of embeddings ``[N, E]`` and ``[M, E]``; in [-1, 1]."""
    return float(alignments(pictures, references).mean())


def self_alignment(references: Tensor) -> float:
    """Mean cosine over all pairs of different references ``[M, E]``: the ceiling of ``image_alignment``."""
    m = len(references)
    if m < 2:
        raise ValueError(f"{m} reference picture: at least 2 are needed to compare them with each other")
    cosines = references @ references.T
    return float((cosines.sum() - cosines.diagonal().sum()) / (m * (m - 1)))


def caption_cosines(pictures: Tensor, captions: Tensor) -> Tensor:
    """Cosine of each picture's embedding ``[N, E]`` with its own caption's: ``[N]``."""
    return (pictures * captions).sum(-1)


def clip_scores(cosines: Tensor) -> Tensor:
    """``2.5 max(0, cosine)``, CLIPScore's scaling (Hessel et al. 2021); in [0, 2.5]."""
    return 2.5 * cosines.clamp(min=0)


def text_alignment(pictures: Tensor, captions: Tensor) -> float:
    """Mean of ``2.5 max(0, cosine)`` of each picture's embedding ``[N, E]`` with its own caption's; in [0, 2.5]."""
    return float(clip_scores(caption_cosines(pictures, captions)).mean())
