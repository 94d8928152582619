"""Which concept a picture shows: the nearest of several, by the mean cosine with the references of each."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Presence:
    """``references``: unit embeddings ``[M, E]`` by name. A name may stand for nothing at all, such as empty places."""

    def __init__(self, references: Mapping[str, Tensor]):
        self.names = list(references)
        self.means = torch.stack([references[name].mean(0) for name in self.names])

    def likeness(self, pictures: Tensor) -> Tensor:
        """Mean cosine ``[N, names]`` of unit embeddings ``[N, E]`` with all references of each name."""
        return pictures @ self.means.T

    def found(self, pictures: Tensor) -> list[str]:
        """The nearest name for each of the embeddings ``[N, E]``."""
        return [self.names[i] for i in self.likeness(pictures).argmax(1).tolist()]


def crops(picture: Tensor, boxes: Sequence[tuple[float, float, float, float]]) -> list[Tensor]:
    """Parts ``[3, h, w]`` of a picture ``[3, H, W]``; a box is left, top, right and bottom, as parts of it."""
    height, width = picture.shape[-2:]
    edges = [(round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)) for x0, y0, x1, y1 in boxes]
    return [picture[:, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] for x0, y0, x1, y1 in edges]
