"""Infusion: a residual per layer at the class word (Zeng et al. 2024).

The residuals start at zero. Captions have the class word in the concept's place, as the foundation knows it.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...backbone import Backbone
from ...bank.concept import Concept
from ...hub import change_attention
from ...method.attention import word_attention
from ...method.infusion import KEY, VALUE, foundation_anchor, infused_value, infusion, masked_error, residual_layers
from ...painting.config import STREAMS, ResidualConfig
from ...painting.paint import predictor
from ...painting.sampling import Predict
from ...painting.scene import Scene
from ...row_plan import RowPlan, TokenResidual
from ...tokens import Text, encode_layerwise, stand_for
from ..captions import INFUSION_TEMPLATES
from ..config import MethodConfig, TrainingConfig, check_choices, check_least
from ..dataset import Dataset
from ..method import Batch, Learner, Method, Task


@dataclass(frozen=True, kw_only=True)
class InfusionConfig(MethodConfig):
    """``targets`` names the layers that get residuals (``method.infusion.LAYERS``, or a regular expression), ``lr`` is constant, ``stream``
    says whose attention map is taken, and ``anchor`` weighs the foundation anchor. Raises ``ValueError`` naming what cannot work.
    """

    lr: float = 1e-2
    targets: str = "all"
    stream: str = STREAMS[0]
    anchor: float = 0.0

    def __post_init__(self) -> None:
        check_least(self, 0, ("lr", "anchor"))
        check_choices(self, stream=STREAMS)
        if self.anchor and self.stream != "dual":
            raise ValueError(f"anchor {self.anchor} with stream {self.stream!r}: only a dual stream has a foundation to anchor to")

    def check_training(self, training: TrainingConfig) -> None:
        if training.prior:
            raise ValueError(f"prior {training.prior}: it has no meaning for the method infusion, expected 0")


class Residuals(Learner):
    """``residuals [C]`` by linear layer, ``<layer>.to_v``, and with the released code's stream ``<layer>.to_k``: all zero at first.

    The loss is the authors' masked one, and ``anchor`` times ours. In a dual stream the foundation goes first, without gradients, and
    leaves what its attention layers make: the customised stream takes that, so its cost is that of an ordinary step and one forward pass.
    """

    def __init__(self, backbone: Backbone, task: Task, words: Mapping[str, Sequence[str]]):
        super().__init__(backbone, task, words)
        layers: Mapping[str, Any] = backbone.cross_attention
        parts = (VALUE, KEY) if self.settings.stream == "released_code" else (VALUE,)
        self.names = [f"{name}.{part}" for name in residual_layers(backbone.family, list(layers), self.settings.targets) for part in parts]
        widths = [getattr(layers[name.rpartition(".")[0]], name.rpartition(".")[2]).out_features for name in self.names]
        self.rows = nn.ParameterList([nn.Parameter(torch.zeros(width)) for width in widths])

    @property
    def settings(self) -> InfusionConfig:
        config = self.task.config.method
        assert isinstance(config, InfusionConfig)
        return config

    @property
    def residuals(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.rows, strict=True))

    def begin(self, concept: Concept) -> None:
        """Takes what a concept knows already. Raises ``ValueError`` if it was learned in other layers or by another method."""
        if {n: r.shape for n, r in concept.residuals.items()} != {n: r.shape for n, r in self.residuals.items()}:
            raise ValueError(
                f"concept {concept.name!r} has {len(concept.residuals)} residuals, these settings learn {len(self.names)}: continue with "
                "the settings it was learned with"
            )
        with torch.no_grad():
            for name, r in self.residuals.items():
                r.copy_(concept.residuals[name])

    def lr_scale(self, step: int) -> float:
        return 1.0

    def concept_parts(self) -> dict[str, Any]:
        return {"residuals": {n: r.detach().cpu().clone() for n, r in self.residuals.items()}}

    def loss(self, batch: Batch, during: ExitStack) -> tuple[Tensor, Tensor]:
        text, marks = self.read(batch.texts)
        draw, mask = batch.noised, batch.mask
        foundation = None
        if self.settings.stream == "dual":
            foundation = self.predict_beside_foundation(batch, text, marks, during)
        else:
            self.take_own_maps(marks, during)
        guess = self.backbone.predict(draw.x, draw.t, text.context, text.pooled).float()
        told = (draw.weight * masked_error(guess, draw.target, mask)).sum()
        if foundation is None:
            return told, torch.zeros_like(told)
        return told, self.settings.anchor * foundation_anchor(guess, foundation, mask).sum()

    def predict_beside_foundation(self, batch: Batch, text: Text, marks: Tensor, during: ExitStack) -> Tensor:
        """Returns the foundation's prediction, and has the next one take what its attention layers made and where the words look."""
        left: dict[str, tuple[Tensor, Tensor]] = {}
        residuals, draw = self.residuals, batch.noised

        def leave(name: str, out: Tensor, q: Tensor, k: Tensor, heads: int) -> Tensor:
            left[name] = out, word_attention(q, k, marks, heads)
            return out

        def take(name: str, out: Tensor, q: Tensor, k: Tensor, heads: int) -> Tensor:
            foundation, attention = left[name]
            residual = residuals.get(f"{name}.{VALUE}")
            return foundation if residual is None else foundation + infusion(attention, residual).to(foundation)

        with torch.no_grad(), change_attention(self.backbone.cross_attention, leave):
            foundation = self.backbone.predict(draw.x, draw.t, text.context, text.pooled).float()
        during.enter_context(change_attention(self.backbone.cross_attention, take))
        return foundation

    def take_own_maps(self, marks: Tensor, during: ExitStack) -> None:
        """Has the next prediction take the maps of the customised features themselves, and residuals of keys if the settings have them."""
        residuals = self.residuals

        def change(name: str, out: Tensor, q: Tensor, k: Tensor, heads: int) -> Tensor:
            residual = residuals.get(f"{name}.{VALUE}")
            return out if residual is None else out + infusion(word_attention(q, k, marks, heads), residual).to(out)

        def keyed(name: str, k: Tensor) -> Tensor:
            residual = residuals.get(f"{name}.{KEY}")
            return k if residual is None else infused_value(k, marks, residual)

        during.enter_context(change_attention(self.backbone.cross_attention, change, keyed))

    def read(self, texts: Sequence[str]) -> tuple[Text, Tensor]:
        """Returns texts with the class word for the concept, and where it stands, ``[B, N]``."""
        pairs = [stand_for(self.backbone, text, {self.words[0]: self.task.class_word}) for text in texts]
        encoded = self.encode([text for text, _ in pairs])
        marks = torch.zeros(len(texts), encoded.states.shape[2])
        for row, (_, found) in zip(marks, pairs, strict=True):
            if (own := found.get(self.words[0])) is not None:
                row[: len(own)] = own  # a shorter text is filled up
        return encoded, marks.to(self.backbone.device)

    def preview(self, prompt: str) -> tuple[Text, Text, Predict | None]:
        text, marks = stand_for(self.backbone, prompt, {self.words[0]: self.task.class_word})
        wanted, nothing = (encode_layerwise(self.backbone, [t], {}) for t in (text, ""))
        residuals = tuple(TokenResidual(self.residuals, m) for m in marks.values())
        wanted = replace(wanted, plans=(RowPlan(residuals=residuals),))
        return wanted, nothing, predictor(self.backbone, Scene(infusion=ResidualConfig(self.settings.stream)))


class Infusion(Method):
    """Infusion learns with the settings of the published code for a cat on SD1.5; its rate is constant."""

    name, config, learner = "infusion", InfusionConfig, Residuals
    defaults = {"steps": 500, "batch": 4, "accumulate": 4, "noise_offset": 0.0, "templates": INFUSION_TEMPLATES}
    states_all = True
    stated = {"mode": "off", "consolidation": 0.0}

    def words(self, name: str, class_word: str) -> list[str]:
        return [f"<{name}>"]

    def remarks(self, data: Dataset) -> list[str]:
        if any(mask is not None for mask in data.masks):
            return []
        return ["there are no masks: the surroundings of the concept are learned too; give masks"]
