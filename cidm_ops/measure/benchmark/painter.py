"""Many prompts in one batch, each with a mixture of concepts of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...adapters import attached
from ...backbone import Backbone
from ...bank.concept import Concept
from ...lowrank import LowRank
from ...method.aggregation import route
from ...method.reach import EVERYWHERE, marks
from ...run.prompt import Mixture, Said, encode
from ...run.sampling import Predict, sample
from ...tokens import join
from ..evaluation import Sampling


def paint_mixtures(
    backbone: Backbone,
    mixtures: Sequence[Mixture],
    noise: Tensor,
    sampling: Sampling,
    composite: bool = False,
    reach: str = EVERYWHERE,
) -> Tensor:
    """Pictures ``[B, 3, 8h, 8w]`` in [-1, 1] of B mixtures of the same concepts from unit Gaussian ``noise [B, 4, h, w]``.

    ``reach`` says where on their texts the concepts act. ``composite``: a forward pass for each concept, and the mean of what they
    predict (LoRA-Composite, Zhong et al. 2024, Eq. 3).
    """
    known = {mixture.text: encode(backbone, mixture) for mixture in mixtures}
    wanted = join([known[mixture.text] for mixture in mixtures])
    negative = encode(backbone, Said(sampling.negative)).expand(len(mixtures))
    weights = torch.stack([mixture.weights for mixture in mixtures]).repeat(2, 1, 1)  # both sides of the guidance
    concepts, noise = mixtures[0].concepts, noise.to(backbone.device)
    texts = [*(mixture.text for mixture in mixtures), *[sampling.negative] * len(mixtures)]
    found = {text: marks(backbone, text, concepts, reach) for text in dict.fromkeys(texts) if reach != EVERYWHERE}
    at = torch.stack([found[text] for text in texts]) if found else None
    here = {} if composite else factors(backbone, concepts, weights, at)
    predict = mean_of(backbone, concepts, weights) if composite else None
    with attached(backbone.layers, here):
        latents = sample(backbone, wanted, negative, noise, steps=sampling.steps, guidance=sampling.guidance, predict=predict)
    return backbone.decode_latent(latents)


def factors(backbone: Backbone, concepts: Sequence[Concept], weights: Tensor, at: Tensor | None = None) -> dict[str, LowRank]:
    """Beside each layer: its concepts with weights ``[B, L, G]`` for the rows of the batch, and where on their words, ``[B, N, G]``."""
    routes, device = route(concepts, list(backbone.cross_attention)), backbone.device
    weights, at = weights.to(device), at if at is None else at.to(device)
    return {name: way.to(torch.zeros(0, device=device)).rows(weights, at) for name, way in routes.items()}


def mean_of(backbone: Backbone, concepts: Sequence[Concept], weights: Tensor) -> Predict:
    """Predicts with each concept alone, and takes the mean."""
    alone = [factors(backbone, [concept], weights[..., g : g + 1]) for g, concept in enumerate(concepts)]

    def predict(x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None, positive: int) -> Tensor:
        total = torch.zeros((), device=x.device)
        for one in alone:
            with attached(backbone.layers, one):
                total = total + backbone.predict(x, t, context, pooled)
        return total / len(alone)

    return predict
