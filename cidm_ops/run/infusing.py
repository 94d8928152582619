"""Learning a concept of Infusion: a residual per layer at its class word, in the loop of every other run.

The residuals start at zero. Captions have the class word in the concept's place, as the foundation knows it.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..bank.concept import Concept
from ..concept_text import RowPlan, TokenResidual
from ..hub import attended
from ..lowrank import LowRank
from ..method.attention import word_attention
from ..method.infusion import (
    KEY,
    VALUE,
    foundation_anchor,
    infused_value,
    infusion,
    masked_error,
    residual_layers,
)
from ..painting.paint import predictor
from ..painting.sampling import sample
from ..painting.scene import InfusionConfig, Scene
from ..tokens import Table, Text, encode_layerwise, stand_for
from .material import Sample, masks_of
from .objective import Noised
from .recipe import Recipe
from .training import Run


class Residuals(nn.Module):
    """``residuals [C]`` by linear layer, ``<layer>.to_v``, and with the released code's stream ``<layer>.to_k``: all zero."""

    words_learn = False
    tokens: Mapping[str, nn.Parameter] = {}

    def __init__(self, backbone: Backbone, recipe: Recipe):
        super().__init__()
        layers: Mapping[str, Any] = backbone.cross_attention
        parts = (VALUE, KEY) if recipe.stream == "released_code" else (VALUE,)
        self.names = [f"{name}.{part}" for name in residual_layers(backbone.family, list(layers), recipe.targets) for part in parts]
        widths = [getattr(layers[name.rpartition(".")[0]], name.rpartition(".")[2]).out_features for name in self.names]
        self.rows = nn.ParameterList([nn.Parameter(torch.zeros(width)) for width in widths])

    @property
    def groups(self) -> tuple[list[nn.Parameter], ...]:
        """Parameters by learning rate; token rows and text encoders have none."""
        return [], [*self.rows], []

    @property
    def residuals(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.rows, strict=True))

    def begin(self, concept: Concept) -> None:
        """Take what a concept knows already. Raises ``ValueError`` if it was learned in other layers or by another method."""
        if {n: r.shape for n, r in concept.residuals.items()} != {n: r.shape for n, r in self.residuals.items()}:
            raise ValueError(
                f"concept {concept.name!r} has {len(concept.residuals)} residuals, these settings learn {len(self.names)}: continue with "
                "the settings it was learned with"
            )
        with torch.no_grad():
            for name, r in self.residuals.items():
                r.copy_(concept.residuals[name])

    def deltas(self) -> dict[str, Any]:
        return {}

    def factors(self, text: bool = False) -> dict[str, LowRank]:
        return {}

    def tables(self, words: Sequence[str]) -> dict[str, Table]:
        return {}

    def learned(self) -> dict[str, Tensor]:
        """The residuals for the concept file."""
        return {n: r.detach().cpu().clone() for n, r in self.residuals.items()}


class InfusionRun(Run):
    """A run whose learner is ``Residuals``; the loss is the authors' masked one, and the recipe's ``anchor`` times ours.

    In a dual stream the foundation goes first, without gradients, and leaves what its attention layers make: the customised stream
    takes that, so its cost is that of an ordinary step and one forward pass.
    """

    learner: Residuals  # type: ignore[assignment]

    def begun(self, earlier: Sequence[Mapping[str, LowRank]], generator: torch.Generator) -> Residuals:  # type: ignore[override]
        return Residuals(self.backbone, self.recipe)

    @property
    def decay(self) -> float:
        return 1.0

    def loss(self, draw: Noised, samples: Sequence[Sample], during: ExitStack) -> tuple[Tensor, Tensor]:
        text, marks = self.read([s.text for s in samples])
        mask, recipe = masks_of(samples), self.recipe
        if recipe.stream != "dual":
            self.single(marks, during)
            guess = self.backbone.predict(draw.x, draw.t, text.context, text.pooled).float()
            told = (draw.weight * masked_error(guess, draw.target, mask)).sum()
            return told, torch.zeros_like(told)
        left: dict[str, tuple[Tensor, Tensor]] = {}

        def leave(name: str, out: Tensor, q: Tensor, k: Tensor, heads: int) -> Tensor:
            left[name] = out, word_attention(q, k, marks, heads)
            return out

        def take(name: str, out: Tensor, q: Tensor, k: Tensor, heads: int) -> Tensor:
            foundation, attention = left[name]
            residual = residuals.get(f"{name}.{VALUE}")
            return foundation if residual is None else foundation + infusion(attention, residual).to(foundation)

        residuals = self.learner.residuals
        with torch.no_grad(), attended(self.backbone.cross_attention, leave):
            foundation = self.backbone.predict(draw.x, draw.t, text.context, text.pooled).float()
        during.enter_context(attended(self.backbone.cross_attention, take))
        guess = self.backbone.predict(draw.x, draw.t, text.context, text.pooled).float()
        anchor = recipe.anchor * foundation_anchor(guess, foundation, mask).sum()
        return (draw.weight * masked_error(guess, draw.target, mask)).sum(), anchor

    def single(self, marks: Tensor, during: ExitStack) -> None:
        """The map is that of the customised features themselves; with keys if the recipe has them."""
        residuals = self.learner.residuals

        def change(name: str, out: Tensor, q: Tensor, k: Tensor, heads: int) -> Tensor:
            residual = residuals.get(f"{name}.{VALUE}")
            return out if residual is None else out + infusion(word_attention(q, k, marks, heads), residual).to(out)

        def keyed(name: str, k: Tensor) -> Tensor:
            residual = residuals.get(f"{name}.{KEY}")
            return k if residual is None else infused_value(k, marks, residual)

        during.enter_context(attended(self.backbone.cross_attention, change, keyed))

    def read(self, texts: Sequence[str]) -> tuple[Text, Tensor]:
        """Texts with the class word for the concept, and where it stands, ``[B, N]``."""
        pairs = [stand_for(self.backbone, text, {self.words[0]: self.class_word}) for text in texts]
        encoded = self.text([text for text, _ in pairs])
        marks = torch.stack([m.get(self.words[0], torch.zeros(encoded.states.shape[2])) for _, m in pairs])
        return encoded, marks.to(self.backbone.device)

    @torch.no_grad()
    def picture(self, prompt: str, seed: int = 0, steps: int = 15, guidance: float = 5.0) -> Tensor:
        text, marks = stand_for(self.backbone, prompt, {self.words[0]: self.class_word})
        wanted, plain = (encode_layerwise(self.backbone, [t], {}) for t in (text, ""))
        residuals = tuple(TokenResidual(self.learner.residuals, m) for m in marks.values())
        wanted = replace(wanted, plans=(RowPlan(residuals=residuals),))
        predict = predictor(self.backbone, Scene(infusion=InfusionConfig(self.recipe.stream)))
        latent = sample(self.backbone, wanted, plain, self.noise(seed), steps=steps, guidance=guidance, predict=predict)
        return self.backbone.decode_latent(latent)[0]

    def concept(self, name: str) -> Concept:
        backbone = self.backbone
        return Concept(
            name,
            self.class_word,
            (),
            {},
            {},
            backbone.architecture,
            backbone.fingerprint,
            self.task,
            self.settings(),
            residuals=self.learner.learned(),
        )
