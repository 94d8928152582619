"""Many prompts in one batch, each with a mixture of concepts of its own."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...backbone import Backbone, TransformerBackbone
from ...evaluation.protocol import SampleSettings
from ...painting.compose import AggregationConfig, ConceptMix, ParsedPrompt, encode, scene_beside
from ...painting.composition import Composition
from ...painting.config import BY_KIND
from ...painting.paint import paint_latents, predictor
from ...painting.sampling import Predict, sample
from ...tokens import join


def paint_mixtures(
    backbone: Backbone | TransformerBackbone,
    mixtures: Sequence[ConceptMix],
    noise: Tensor,
    sampling: SampleSettings,
    composite: bool = False,
    reach: str = BY_KIND,
) -> Tensor:
    """Pictures ``[B, 3, H, W]`` in [-1, 1] of B mixtures of the same concepts from unit Gaussian ``noise [B, C, h, w]``.

    ``reach`` says where on their texts the concepts act. ``composite``: a forward pass for each concept, and the mean of what they
    predict (LoRA-Composite, Zhong et al. 2024, Eq. 3). On transformers in which all layers read one text each is painted by itself.

    Raises ``ValueError`` for ``composite`` there.
    """
    if isinstance(backbone, TransformerBackbone):
        if composite:
            raise ValueError(f"a pass for each concept is not painted on {backbone.family.title}: take another merge")
        alone = [Composition(mixture, (), AggregationConfig(scope=reach)) for mixture in mixtures]
        pairs = zip(alone, noise.split(1), strict=True)
        return backbone.decode_latent(torch.cat([paint_latents(backbone, one, own, sampling.config) for one, own in pairs]))
    known = {mixture.text: encode(backbone, mixture) for mixture in mixtures}
    wanted = join([known[mixture.text] for mixture in mixtures])
    negative = encode(backbone, ParsedPrompt(sampling.negative)).expand(len(mixtures))
    parts = [[each_alone(m, g) for m in mixtures] for g in range(len(mixtures[0].concepts))] if composite else [mixtures]
    predict = mean_of([predictor(backbone, scene_beside([[m] for m in part], AggregationConfig(scope=reach))) for part in parts])
    noise = noise.to(backbone.device)
    latents = sample(backbone, wanted, negative, noise, steps=sampling.steps, guidance=sampling.guidance, predict=predict)
    return backbone.decode_latent(latents)


def each_alone(mixture: ConceptMix, g: int) -> ConceptMix:
    """A mixture with its concept number g only."""
    return replace(mixture, concepts=[mixture.concepts[g]], weights=mixture.weights[:, g : g + 1])


def mean_of(predicts: Sequence[Predict]) -> Predict:
    """Return the prediction that is the mean of several."""

    def predict(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor | None, chunks: int) -> Tensor:
        return torch.stack([one(x, t, text, pooled, chunks) for one in predicts]).mean(0)

    return predict
