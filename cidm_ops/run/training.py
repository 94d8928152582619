"""Learning one concept on a frozen base: layer-wise tokens and cross-attention factors (CIDM 3.1, recipe of 4.1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters import attached, linears
from ..backbone import Backbone
from ..bank.concept import Concept
from ..lowrank import LowRank
from ..method.consolidation import consolidation_loss, earlier_bases
from ..tokens import encode_layerwise
from .data import OBJECT_TEMPLATES, ConceptImages, concept_captions


@dataclass(frozen=True)
class Recipe:
    """The paper's recipe. ``batch`` is the effective batch of its two GPUs; rates decay linearly to zero.

    ``norm_stop``: when the mean norm of the concept's token rows reaches it, the rows stop for good and only the factors
    go on. ``consolidation`` is gamma_1 of Eq. 2. ``init_sigma`` is the standard deviation of the free adjective's row.
    """

    steps: int = 800
    batch: int = 2
    rank: int = 4
    lr: float = 1e-4
    lr_tokens: float = 1e-3
    weight_decay: float = 0.01
    consolidation: float = 0.1
    norm_stop: float = 0.55
    init_sigma: float = 0.013
    noise_offset: float = 0.01
    templates: tuple[str, ...] = OBJECT_TEMPLATES
    seed: int = 0


class Learner(nn.Module):
    """What is learned: ``tokens [k, L, D]`` and ``up, down`` of every projection of every cross-attention layer."""

    def __init__(self, backbone: Backbone, class_word: str, k: int, recipe: Recipe, generator: torch.Generator):
        super().__init__()
        layers = linears(backbone.cross_attention)
        self.names = list(layers)
        nouns = [_noun_row(backbone, noun) for noun in class_word.split()]
        adjective = torch.randn(nouns[0].shape, generator=generator) * recipe.init_sigma
        rows = torch.stack([adjective, *[row.cpu() for row in nouns]][:k])
        self.tokens = nn.Parameter(rows[:, None].repeat(1, len(backbone.cross_attention), 1))
        self.ups, self.downs = nn.ParameterList(), nn.ParameterList()
        weights: list[Any] = [layer.weight for layer in layers.values()]
        for out_features, in_features in (w.shape for w in weights):
            bound = 1 / math.sqrt(in_features)  # kaiming uniform with a = sqrt(5)
            down = torch.empty(recipe.rank, in_features).uniform_(-bound, bound, generator=generator)
            self.downs.append(nn.Parameter(down))
            self.ups.append(nn.Parameter(torch.zeros(out_features, recipe.rank)))

    def factors(self) -> dict[str, LowRank]:
        return {n: LowRank(u, d) for n, u, d in zip(self.names, self.ups, self.downs, strict=True)}


def _noun_row(backbone: Backbone, noun: str) -> Tensor:
    """The token row ``[D]`` of a noun, the mean if CLIP splits it."""
    ids = backbone.tokenize(noun)[0]
    length = int((ids[1:] == ids[-1]).nonzero()[0])
    return backbone.token_rows(ids[1 : 1 + length].to(backbone.device)).mean(0)


def learn(
    backbone: Backbone,
    data: ConceptImages,
    *,
    name: str,
    class_word: str,
    words: Sequence[str],
    earlier: Sequence[Concept] = (),
    recipe: Recipe | None = None,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> tuple[Concept, list[float]]:
    """Learn one concept; the base and the ``earlier`` concepts stay as they are.

    ``on_step(step, steps, loss)`` is called after every step and may raise to stop. Returns the concept and its losses.
    Raises ``FloatingPointError`` when the loss stops being a finite number.
    """
    recipe = recipe or Recipe()
    device = backbone.device
    generator = torch.Generator().manual_seed(recipe.seed)
    captions, warnings = concept_captions(data.captions, class_word, words)
    data.warnings.extend(warnings)
    with torch.no_grad():
        latents = torch.cat([backbone.encode_image(p[None].to(device)) for p in data.pictures]).float()
    masks = None if data.masks is None else F.interpolate(data.masks, latents.shape[-2:], mode="area").to(device)
    learner = Learner(backbone, class_word, len(words), recipe, generator).to(device)
    bases = {n: b.to(device) for n, b in earlier_bases([c.factors for c in earlier]).items()}
    abar = backbone.alphas_cumprod.to(device)
    optimiser = torch.optim.AdamW(
        [
            {"params": [learner.tokens], "lr": recipe.lr_tokens},
            {"params": [*learner.ups, *learner.downs], "lr": recipe.lr},
        ],
        weight_decay=recipe.weight_decay,
    )
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / recipe.steps)
    order: list[int] = []
    losses = []
    factors = learner.factors()
    layers = linears(backbone.cross_attention)
    with attached(layers, factors):
        for step in range(recipe.steps):
            while len(order) < recipe.batch:
                order += torch.randperm(len(latents), generator=generator).tolist()
            batch, order = order[: recipe.batch], order[recipe.batch :]
            x0 = latents[batch]
            t = torch.randint(0, len(abar), (len(batch),), generator=generator).to(device)
            noise = torch.randn(x0.shape, generator=generator)
            noise += recipe.noise_offset * torch.randn(*x0.shape[:2], 1, 1, generator=generator)
            noise = noise.to(device)
            a = abar[t].view(-1, 1, 1, 1)
            texts = [_worded(captions[i], recipe.templates, generator) for i in batch]
            context = encode_layerwise(backbone, texts, dict(zip(words, learner.tokens, strict=True)))
            guess = backbone.predict(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, context).float()
            target = noise if backbone.prediction == "eps" else a.sqrt() * noise - (1 - a).sqrt() * x0
            loss = _masked_mean((guess - target).square(), None if masks is None else masks[batch])
            total = loss + recipe.consolidation * consolidation_loss(zip(learner.names, learner.ups, strict=True), bases)
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            optimiser.step()
            decay.step()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss is {losses[-1]} at step {step + 1}: lower the learning rate or use fp32; the bank is unchanged"
                )
            if learner.tokens.requires_grad and learner.tokens.detach().norm(dim=-1).mean() >= recipe.norm_stop:
                learner.tokens.requires_grad_(False)
                learner.tokens.grad = None
            on_step(step + 1, recipe.steps, losses[-1])
    kept = {n: LowRank(f.up.detach().cpu(), f.down.detach().cpu()) for n, f in factors.items()}
    settings = asdict(recipe) | {
        "templates": len(recipe.templates),
        "pictures": len(latents),
        "loss": sum(losses[-50:]) / len(losses[-50:]),
    }
    concept = Concept(
        name,
        class_word,
        tuple(words),
        kept,
        {"clip_l": learner.tokens.detach().cpu()},
        backbone.architecture,
        backbone.fingerprint,
        1 + len(earlier),
        settings,
    )
    return concept, losses


def _worded(caption: str, templates: Sequence[str], generator: torch.Generator) -> str:
    return templates[int(torch.randint(len(templates), (1,), generator=generator))].format(caption)


def _masked_mean(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``error [B, 4, h, w]`` over the area of ``mask [B, 1, h, w]``, so that small masks weigh as much as large ones."""
    if mask is None:
        return error.mean()
    return (error * mask).sum() / (mask.expand_as(error).sum() + 1e-6)
