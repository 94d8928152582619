"""From a prompt and a bank to pictures, on any backbone."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from ..adapters import attached
from ..backbone import Backbone
from ..bank.bank import Bank
from ..lowrank import LowRank
from ..method.aggregation import Rule, route
from ..method.reach import BY_KIND, everywhere, marks, reaching
from ..models.family import Family
from .infusion import Way, infuse, predictor
from .prompt import Mixture, Said, encode
from .sampling import Predict, sample


@torch.no_grad()
def paint(
    backbone: Backbone,
    bank: Bank,
    prompt: str,
    noise: Tensor,
    *,
    negative: str = "",
    mode: str = "exact",
    strength: float = 1.0,
    rule: Rule | None = None,
    reach: str = BY_KIND,
    steps: int = 25,
    guidance: float = 5.0,
    infusion: Way | None = None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> tuple[Tensor, list[str]]:
    """Pictures ``[B, 3, H, W]`` in [-1, 1] from unit Gaussian ``noise [B, C, h, w]``, and warnings about the concepts' base.

    ``mode``, ``strength`` and ``rule`` are those of the aggregation (CIDM 3.2), ``reach`` says where in the prompt concepts act, which
    beside residuals is everywhere, and ``infusion`` how residuals do.
    Raises ``ValueError`` for a word that no concept of the bank has and for a concept of another architecture.
    """
    way = infusion or Way()
    mixture, charges = infuse(backbone, bank, prompt, mode, strength, rule, layers=way.layers)
    wanted, unwanted = (encode(backbone, said).expand(len(noise)) for said in (mixture, Said(negative)))
    if charges or everywhere(mixture.concepts, reach):
        here = {name: f.to(backbone.device) for name, f in mixture.factors(backbone).items()}
        predict = predictor(backbone, charges, way)
    else:
        here, predict = {}, beside(backbone, [mixture] * len(noise), negative, reach)
    with attached(backbone.layers, here):
        latents = sample(
            backbone, wanted, unwanted, noise.to(backbone.device), steps=steps, guidance=guidance, predict=predict, on_step=on_step
        )
    return backbone.decode_latent(latents), list(mixture.warnings)


def beside(backbone: Backbone, mixtures: Sequence[Mixture], negative: str, reach: str) -> Predict:
    """The model with the concepts of B mixtures beside its layers, the same ones in all, each row weighed by its own: rows of the
    positive text in turn, then those of the negative one.
    """
    device, concepts = backbone.device, reaching(mixtures[0].concepts, reach)
    routes = {n: way.to(torch.zeros(0, device=device)) for n, way in route(concepts, list(backbone.cross_attention)).items()}
    weights = torch.stack([mixture.weights for mixture in mixtures]).to(device)
    found = {text: marks(backbone, text, concepts, reach) for text in {negative, *(mixture.text for mixture in mixtures)}}
    named = torch.stack([found[mixture.text] for mixture in mixtures]).to(device)
    elsewhere = found[negative].to(device).expand(len(mixtures), -1, -1)

    @cache
    def factors(positive: bool, rest: bool) -> dict[str, LowRank]:
        at = torch.cat([named] * positive + [elsewhere] * rest)
        return {n: way.rows(weights.repeat(positive + rest, 1, 1), at) for n, way in routes.items()}

    def predict(x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None, positive: int) -> Tensor:
        with attached(backbone.layers, factors(positive > 0, positive < len(x))):
            return backbone.predict(x, t, context, pooled)

    return predict


def unit_noise(family: Family, seed: int, count: int, height: int, width: int) -> Tensor:
    """Noise ``[count, C, h, w]`` for the latents of images of ``height`` times ``width`` pixels, on the CPU; image i has that of
    ``seed + i``, as ComfyUI draws it for one image.
    """
    shape = family.latent_shape(height, width)
    return torch.cat([torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)])
