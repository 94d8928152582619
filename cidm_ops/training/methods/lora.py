"""LoRA on transformers in which all layers read one text: low-rank factors in their blocks, kept apart from earlier concepts.

Such a model has no layers that each read a text, so a concept has no words of its own there: its name before the class word calls it, as
with any LoRA, and nothing about texts is trained. What keeps concepts apart (CIDM 3.1) acts on the factors of every layer, those that lie
fused in one module each on its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...adapters import MEETING, attach_parts, joint_linears
from ...backbone import TransformerBackbone
from ...bank.concept import Concept
from ...concept_text import plain
from ...lowrank import LowRank
from ...method.consolidation import MODES, Consolidation, consolidation
from ...models.family import Family
from ...models.module import Slice
from ...painting.sampling import Predict
from ...tokens import Text, joined, read_plain
from ..config import MethodConfig, check_choices, check_least
from ..method import Learner, Method, Task
from ..objective import draw_levels, nearest_timesteps, shift_of_size
from .factors import begin_factors, check_rank


@dataclass(frozen=True, kw_only=True)
class LoraConfig(MethodConfig):
    """Rates decay linearly to zero. ``targets`` names the layers that get factors (``adapters.JOINT_TARGETS``, or a regular expression on
    their canonical names), ``alpha`` scales the factors by ``alpha / rank`` while they learn, 0 stands for the rank.

    ``consolidation`` is gamma_1 of Eq. 2 and weighs the regularizer ``mode``. ``guidance`` is what a model that was distilled by guidance
    is told meanwhile; -1 stands for what suits the family. Raises ``ValueError`` naming the setting that cannot work.
    """

    targets: str = MEETING
    rank: int = 16
    alpha: float = 0.0
    mode: str = MODES[0]
    consolidation: float = 0.1
    guidance: float = -1.0

    def __post_init__(self) -> None:
        check_least(self, 1, ("rank",))
        check_least(self, 0, ("alpha", "lr", "consolidation"))
        check_choices(self, mode=MODES)

    @property
    def scale(self) -> float:
        """The factors' change is multiplied by this while they learn."""
        return (self.alpha or self.rank) / self.rank


class LoraLearner(Learner):
    """``up, down`` of every target layer. ``earlier`` are the factors that the new ones are kept apart from. An assistant of the task acts
    beside them while they learn, and not while they paint.

    Raises ``ValueError`` when the rank is above a layer's width or the assistant is for another model.
    """

    backbone: TransformerBackbone  # type: ignore[assignment]

    def __init__(
        self,
        backbone: TransformerBackbone,
        task: Task,
        words: Mapping[str, Sequence[str]],
        earlier: Sequence[Mapping[str, LowRank]],
        generator: torch.Generator,
    ):
        super().__init__(backbone, task, words)  # type: ignore[arg-type]
        config = self.settings
        layers: Mapping[str, Slice] = joint_linears(backbone.family, backbone.layers, config.targets)
        shapes = {name: (at.rows, at.columns) for name, at in layers.items()}
        check_rank(config.rank, shapes)
        self.names, self.scale = list(layers), config.scale
        apart_from = earlier if config.mode == "orthogonal" else None
        self.downs, self.ups = begin_factors(shapes, config.rank, generator, apart_from)
        self.regularizer: Consolidation = consolidation(config.mode, earlier, config.lr, generator)
        self.prepared: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.assistant: dict[str, LowRank] = {}
        self.assisting = True
        if task.assistant is not None:
            check_assistant(task.assistant, backbone)
            self.assistant = {n: f.to(backbone.device) for n, f in task.assistant.factors.items()}

    @property
    def settings(self) -> LoraConfig:
        config = self.task.config.method
        assert isinstance(config, LoraConfig)
        return config

    @property
    def guidance(self) -> float:
        """What a model that was distilled by guidance is told while it learns."""
        return self.backbone.family.objective.guidance if self.settings.guidance < 0 else self.settings.guidance

    @property
    def preview_guidance(self) -> float:
        """Classifier-free guidance of previews; a base that needs an assistant is distilled, and paints without."""
        return 1.0 if self.assistant else super().preview_guidance

    def draw_timesteps(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        density, shift = self.noise_levels
        height, width = self.backbone.family.grids(*clean.shape[-2:])[0]
        shift = shift or shift_of_size(height * width)
        return nearest_timesteps(draw_levels(len(clean), density, shift, generator), self.backbone.schedule)

    def begin(self, concept: Concept) -> None:
        """Takes what a concept knows already. Raises ``ValueError`` if it was learned with other settings."""
        mine = {n: f.up.shape for n, f in self.factors().items()}
        if mine != {n: f.up.shape for n, f in concept.factors.items()}:
            rank = next((f.rank for f in concept.factors.values()), 0)
            raise ValueError(
                f"concept {concept.name!r} has {len(concept.factors)} factors of rank {rank}, these settings learn {len(mine)} of rank "
                f"{self.settings.rank}: continue with the settings it was learned with"
            )
        with torch.no_grad():
            for n, f in self.factors().items():
                f.up.copy_(concept.factors[n].up / self.scale)
                f.down.copy_(concept.factors[n].down)

    def read_all(self, texts: Sequence[str]) -> None:
        """Reads all texts that will be learned from, keeps them in main memory, and lets go of the text encoders. Without texts they are
        read as they come.
        """
        self.prepared = {text: self.backbone.read(text) for text in dict.fromkeys(texts)}
        if texts:
            self.backbone.drop_encoders()

    def read(self, text: str) -> Text:
        """Returns a text as the model reads it."""
        return (
            self.keep_text(text, lambda: read_plain(self.backbone, text))
            if text not in self.prepared
            else joined(self.backbone, *self.prepared[text])
        )

    @contextmanager
    def attach(self) -> Iterator[None]:
        modules, layers = self.backbone.modules, self.backbone.layers
        helping = {
            n: (lambda x, f=f: f(x) if self.assisting else torch.zeros((), dtype=x.dtype, device=x.device))
            for n, f in self.assistant.items()
        }
        with attach_parts(modules, layers, helping) if helping else nullcontext(), attach_parts(modules, layers, self.deltas()):
            yield

    def deltas(self) -> dict[str, Any]:
        """Returns what to add to the output of each layer while learning."""
        return {n: (f if self.scale == 1 else (lambda x, f=f: f(x) * self.scale)) for n, f in self.factors().items()}

    def factors(self) -> dict[str, LowRank]:
        """Returns the factors themselves, not scaled."""
        return {n: LowRank(u, d) for n, u, d in zip(self.names, self.ups, self.downs, strict=True)}

    def answer(self, x: Tensor, t: Tensor, texts: Sequence[str]) -> Tensor:
        """Texts of one length go through the model together: it would read what others are filled up with."""
        read = [self.read(text) for text in texts]
        of_length: dict[int, list[int]] = {}
        for row, text in enumerate(read):
            of_length.setdefault(text.states.shape[2], []).append(row)
        answers: dict[int, Tensor] = {}
        for rows in of_length.values():
            states = torch.cat([read[row].states[:, 0] for row in rows])
            found = [own for row in rows if (own := read[row].pooled) is not None]
            pooled = torch.cat(found) if found else None
            answers |= dict(zip(rows, self.backbone.predict(x[rows], t[rows], states, pooled, self.guidance).float(), strict=True))
        return torch.stack([answers[row] for row in range(len(x))])

    def preview(self, prompt: str) -> tuple[Text, Text, Predict | None]:
        wanted, nothing = (self.read(text) for text in (self.spoken(prompt), ""))
        if self.prepared:
            self.backbone.drop_encoders()

        def predict(x: Tensor, t: Tensor, text: Tensor, pooled: Tensor | None, chunks: int) -> Tensor:
            self.assisting = False
            try:
                return self.backbone.predict(x, t, plain(text), pooled)
            finally:
                self.assisting = True

        return wanted, nothing, predict

    def regularization(self) -> Tensor:
        return self.settings.consolidation * self.regularizer.loss(self.factors())

    def after_step(self) -> None:
        self.regularizer.after_step(self.factors())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {f"term.{n}": t for n, t in self.regularizer.state().items()}, {}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.regularizer.load({n.removeprefix("term."): t for n, t in tensors.items() if n.startswith("term.")})

    def record(self) -> dict[str, Any]:
        return {"assistant": self.task.assistant.name} if self.task.assistant is not None else {}

    def concept_parts(self) -> dict[str, Any]:
        factors = {n: LowRank(self.scale * f.up.detach().cpu(), f.down.detach().cpu()) for n, f in self.factors().items()}
        return {"factors": factors, "triggers": self.words}


class Lora(Method):
    """LoRA learns with what trainers of these models agree on: rank 16, all linear layers of the blocks, 1500 steps of one picture."""

    name, config, learner = "lora", LoraConfig, LoraLearner
    defaults = {"steps": 1500, "batch": 1, "dropout": 0.05, "noise_offset": 0.0, "checkpointing": True, "templates": ("{}",)}
    continual = True

    def words(self, name: str, class_word: str) -> list[str]:
        return [f"{name} {class_word}"]

    def check_family(self, family: Family) -> None:
        if family.layerwise:
            raise ValueError(
                f"method {self.name!r} learns on transformers in which all layers read one text, and this base is {family.title}: take "
                "method 'cidm'"
            )

    def make_learner(self, backbone: Any, task: Task, earlier: Sequence[Concept], generator: torch.Generator) -> LoraLearner:
        return LoraLearner(backbone, task, self.words_by_name(task), [c.factors for c in earlier], generator)


def check_assistant(assistant: Concept, backbone: TransformerBackbone) -> None:
    """Raises ``ValueError`` for an assistant that is for another model than is learned on."""
    layers = backbone.layers
    fits = all(n in layers and (layers[n].rows, layers[n].columns) == shape for n, shape in assistant.shapes.items())
    if assistant.architecture != backbone.architecture or not fits:
        raise ValueError(
            f"the assistant {assistant.name!r} is for {assistant.architecture} and changes {len(assistant.shapes)} layers, not all of "
            f"which this model ({backbone.architecture}) has: take the one that was made for it"
        )
