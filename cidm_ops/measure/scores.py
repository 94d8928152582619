"""Alignment as cosines in the space of an image encoder: with pictures of a concept (CIDM 4.1, "IA"; "IMS" after MetaCloak) and with
captions ("TA").
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .interval import Interval, mean_interval, several

ImageEncoder = Callable[[Tensor], Tensor]  # pictures [B, 3, H, W] in [-1, 1] to embeddings [B, E]


@torch.no_grad()
def embed(encoder: ImageEncoder, pictures: Tensor) -> Tensor:
    """Unit embeddings ``[B, E]`` of pictures ``[B, 3, H, W]`` in [-1, 1]."""
    return torch.cat([F.normalize(encoder(part).float(), dim=-1) for part in pictures.split(32)])


@torch.no_grad()
def embed_all(encoder: ImageEncoder, pictures: Sequence[Tensor]) -> Tensor:
    """Unit embeddings ``[N, E]`` of pictures ``[3, H, W]`` of any shapes; those of one shape go through the encoder together."""
    found: dict[int, Tensor] = {}
    for shape in dict.fromkeys(p.shape for p in pictures):
        which = [i for i, p in enumerate(pictures) if p.shape == shape]
        seen = embed(encoder, torch.stack([pictures[i] for i in which]))
        found |= dict(zip(which, seen, strict=True))
    return torch.stack([found[i] for i in range(len(pictures))])


def alignments(pictures: Tensor, references: Tensor) -> Tensor:
    """Mean cosine of each picture's embedding ``[N, E]`` with all references ``[M, E]``: ``[N]``, in [-1, 1]."""
    return pictures @ references.mean(0)


def image_alignment(pictures: Tensor, references: Tensor) -> float:
    """Mean cosine over all pairs of embeddings ``[N, E]`` and ``[M, E]``; in [-1, 1]."""
    return float(alignments(pictures, references).mean())


def matching(pictures: Tensor, references: Tensor) -> Tensor:
    """Cosine of each picture's embedding ``[N, E]`` with the mean of the references ``[M, E]``: ``[N]``, in [-1, 1].

    Identity matching (IMS) as MetaCloak's code has it (Liu et al. 2024); that of the leaderboards is unpublished, so this is our reading.
    It is ``alignments`` divided by the length of that mean. Raises ``ValueError`` where the references cancel each other out.
    """
    return alignments(pictures, references) / mean_length(references)


def mean_length(references: Tensor) -> float:
    """The length of the mean of unit embeddings ``[M, E]``, in (0, 1]: 1 where all are the same. Raises ``ValueError`` for one of 0."""
    length = float(references.mean(0).norm())
    if length < 1e-6:
        raise ValueError(f"the mean of {len(references)} references has no direction: they cancel each other out, so nothing can match it")
    return length


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


@dataclass(frozen=True)
class ImageAlignment:
    """How like its references a group of pictures is: ``values [N]``, their ``mean``, and ``ceiling``, the references among themselves
    (nan for one reference). ``matches [N]`` and their mean ``matching`` say how like the mean of its references it is.
    """

    values: Tensor
    mean: Interval
    ceiling: float
    matches: Tensor
    matching: Interval


def align_images(pictures: Tensor, references: Tensor) -> ImageAlignment:
    """Scores embeddings ``[N, E]`` of pictures against those of references ``[M, E]``."""
    values = alignments(pictures, references).cpu()
    ceiling = self_alignment(references) if len(references) > 1 else math.nan
    over, matches = several(len(values), "picture"), matching(pictures, references).cpu()
    return ImageAlignment(values, mean_interval(values, over), ceiling, matches, mean_interval(matches, over))


@dataclass(frozen=True)
class TextAlignment:
    """How true to their captions a group of pictures is: plain ``cosines [N]``, and the ``mean`` of ``clip_scores``."""

    cosines: Tensor
    mean: Interval


def align_texts(pictures: Tensor, captions: Tensor) -> TextAlignment:
    """Scores embeddings ``[N, E]`` of pictures against those of their own captions ``[N, E]``."""
    cosines = caption_cosines(pictures, captions)
    return TextAlignment(cosines, mean_interval(clip_scores(cosines), several(len(cosines), "picture")))


def mean_over(groups: Sequence[Interval], what: str) -> Interval:
    """The only figure of one group, else the mean over groups with its interval, groups drawn again; each is a ``what``."""
    if len(groups) == 1:
        return groups[0]
    return mean_interval(torch.tensor([g.value for g in groups]), several(len(groups), what))
