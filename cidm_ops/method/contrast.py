"""Contrast of pictures and texts: the words of concepts are told apart before, and while, a model learns them (CLIF, Lin et al. 2024).

The encoders stay as they are, and words alone follow: a text is to lie nearest to the pictures that show what it says, and a picture to its
texts. The paper's code takes every other text of a batch for a wrong one, also one that says the same; here what says the same shares the
probability.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def alike(one: Sequence[Hashable], other: Sequence[Hashable]) -> Tensor:
    """Returns where entries of two sequences are the same, ``[N, M]``."""
    number = {key: i for i, key in enumerate(dict.fromkeys([*one, *other]))}
    a, b = (torch.tensor([number[key] for key in keys]) for keys in (one, other))
    return a[:, None] == b[None]


def shared_cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Returns the cross-entropy of every row of ``logits [N, M]`` with equal parts for what is ``right [N, M]``, ``[N]``.

    Raises ``ValueError`` for a row with nothing right in it.
    """
    if not bool(right.any(1).all()):
        raise ValueError(f"row {int((~right.any(1)).nonzero()[0])}: nothing in it is right, expected one at least")
    log_shares = torch.where(right, logits.log_softmax(1), 0)
    return -log_shares.sum(1) / right.sum(1)


def contrast_loss(images: Tensor, texts: Tensor, who: Sequence[Hashable], scale: float, others: Tensor | None = None) -> Tensor:
    """Returns the symmetric contrastive loss of pictures ``images [N, E]`` and their ``texts [N, E]``, which are of any length:
    ``1/2 [CE(s F G^T) + CE(s G F^T)]`` (CLIP, Radford et al. 2021), where rows that are the same in ``who`` are right for each other.

    ``others [K, E]`` are texts that no picture shows: wrong ones for every picture. Pictures get no gradient. With nobody alike and no
    others it is the loss of the diagonal. Raises ``ValueError`` for numbers that do not go together.
    """
    if not len(images) == len(texts) == len(who):
        raise ValueError(f"{len(images)} pictures, {len(texts)} texts and {len(who)} names: expected as many of each")
    seen, said = F.normalize(images.detach(), dim=-1), F.normalize(texts, dim=-1)
    right = alike(who, who).to(said.device)
    logits = scale * seen @ said.T
    to_pictures = shared_cross_entropy(logits.T, right)
    if others is not None and len(others):
        wrong = scale * seen @ F.normalize(others, dim=-1).T
        logits, right = torch.cat([logits, wrong], 1), torch.cat([right, torch.zeros_like(wrong, dtype=torch.bool)], 1)
    return (shared_cross_entropy(logits, right).mean() + to_pictures.mean()) / 2


def found_right(images: Tensor, texts: Tensor, pictured: Sequence[Hashable], said: Sequence[Hashable]) -> Tensor:
    """Returns 1 for each of ``images [N, E]`` whose nearest of ``texts [M, E]`` says what is ``pictured``, else 0, ``[N]``."""
    nearest = (F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T).argmax(1, keepdim=True)
    return alike(pictured, said).to(nearest.device).gather(1, nearest)[:, 0].float()
