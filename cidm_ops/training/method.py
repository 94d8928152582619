"""What a method of learning is to the trainer: ``Method`` says what it is, ``Learner`` holds what one task trains.

A new method is a ``MethodConfig``, a ``Learner``, a ``Method`` with both, and its name in ``methods``. What the trainer does with any of
them alike (memory, micro-batches, previews, cancel, resume) is in ``trainer``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..bank.concept import Concept
from ..bank.header import LOW_RANK, check_name
from ..models.family import Family
from ..painting.sampling import Predict
from ..tokens import Table, Text, concept_words, encode_layerwise, join, of_one_length
from .batches import Sample, masks_of
from .captions import TEMPLATES
from .config import EXISTING, OWN, MethodConfig, TrainingConfig
from .dataset import Dataset
from .objective import Noised, draw_timesteps, error
from .processes import ALONE, Processes
from .spaces import Contrast

KEPT_TEXTS = 512  # MB of encoded texts that a run keeps once they are constants


@dataclass(frozen=True, kw_only=True)
class Task:
    """One concept to learn: its name, what kind of thing it is in plain words, and how it is learned.

    ``existing`` says what happens to another concept of that name: it is replaced in its place, the task is refused, or learning continues
    from what it knows. ``prior`` holds pictures of the plain class, and ``method`` stands in for the one that the settings belong to.
    ``others`` are the class words, by name, of further concepts that the same pictures show and that are learned together with it.
    ``beside`` names concepts that are learned at the same time elsewhere, which this one is not kept apart from, even where the bank has
    them already; ``processes`` share the work of every step.
    ``contrast`` is what a method that compares pictures with words does it by. The ``assistant`` is a LoRA that acts beside a distilled
    base while it is learned on, as if that were not distilled, and is then left off.
    Raises ``ValueError`` for a name that is none or there twice, for no class word and for an unknown ``existing``.
    """

    name: str
    class_word: str
    config: TrainingConfig
    existing: str = EXISTING[0]
    prior: Dataset | None = None
    method: "Method | None" = None
    others: Mapping[str, str] = field(default_factory=dict)
    beside: Sequence[str] = ()
    processes: Processes = ALONE
    contrast: Contrast | None = None
    assistant: Concept | None = None

    def __post_init__(self) -> None:
        for name, class_word in ((self.name, self.class_word), *self.others.items()):
            check_name(name)
            if not class_word.strip():
                raise ValueError("the class word is empty: say what kind of thing it is, such as dog or teddy bear")
        if len({name.lower() for name in self.concepts}) <= len(self.others):
            raise ValueError(f"of the names {', '.join([self.name, *self.others])} two are alike: name every concept differently")
        if self.existing not in EXISTING:
            raise ValueError(f"existing {self.existing!r}: expected one of {', '.join(EXISTING)}")

    @property
    def concepts(self) -> dict[str, str]:
        """The class words of all concepts that are learned, by name."""
        return {self.name: self.class_word, **self.others}

    @property
    def plain(self) -> str:
        """What the pictures show in plain words: "dog", or "dog and a cat" where several concepts are learned together."""
        return " and a ".join(self.concepts.values())


@dataclass(frozen=True)
class Batch:
    """Noised pictures of one shape, the samples they are of, and the number of the step that takes them."""

    noised: Noised
    samples: Sequence[Sample]
    step: int

    @property
    def texts(self) -> list[str]:
        return [sample.text for sample in self.samples]

    @property
    def mask(self) -> Tensor | None:
        """The mask says where to learn, ``[B, 1, h, w]``; ``None`` stands for everywhere in all pictures."""
        return masks_of(self.samples)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained at one learning rate."""

    parameters: list[nn.Parameter]
    lr: float


class Learner(nn.Module):
    """A learner is what one task trains, its parameters, and what the trainer asks of it. A subclass makes its parameters and gives
    ``concept_parts``.

    The rest has answers here: all parameters at ``lr``, which decays to zero; the loss of the model's own objective with texts in which the
    concept's words read ``tables``. What else changes the model acts while ``attach`` is open. ``words`` are those of every concept of the
    task, by name.
    """

    def __init__(self, backbone: Backbone, task: Task, words: Mapping[str, Sequence[str]]):
        super().__init__()
        self.backbone, self.task = backbone, task
        self.words_of = {name: tuple(own) for name, own in words.items()}
        self.words = tuple(word for own in self.words_of.values() for word in own)
        self.kept_texts: dict[str, Text] = {}

    def concept_parts(self) -> dict[str, Any]:
        """Returns what the concept's file gets: the fields of ``Concept`` that this method fills. How a concept is painted follows from
        them: ``words`` with ``tokens`` and ``factors``, or ``residuals`` at the class word.
        """
        raise NotImplementedError

    def parts_by_name(self) -> dict[str, dict[str, Any]]:
        """Returns what the file of each concept gets. A method that learns several together says so for each of them."""
        return {self.task.name: self.concept_parts()}

    def begin(self, concept: Concept) -> None:
        """Takes what a concept knows already. Raises ``ValueError`` if it was learned in another way."""
        raise ValueError(f"concept {concept.name!r} cannot be learned further by this method: choose another name, or let it be replaced")

    def look_at(self, data: Dataset) -> None:
        """Takes from the pictures, before the first step, what it needs of them beside batches."""

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(list(self.parameters()), self.task.config.method.lr)]

    def lr_scale(self, step: int) -> float:
        """Returns what part of its rate every group has in step ``step``, which counts from 0."""
        return 1 - step / self.task.config.steps

    @contextmanager
    def attach(self) -> Iterator[None]:
        """Make the model the base with the concept as far as it is learned while this is open, beside what its words do."""
        yield

    def tables(self) -> dict[str, Table]:
        """Returns the token rows of the concept's words."""
        return {}

    @property
    def texts_learn(self) -> bool:
        """Whether encoded texts depend on what is trained; else each is encoded once."""
        return False

    def encode(self, texts: Sequence[str]) -> Text:
        """Encodes texts for every layer. Where nothing about texts is trained (any more), each is encoded by itself and kept."""
        if self.texts_learn:
            return encode_layerwise(self.backbone, texts, self.tables())
        encoded = [self.keep_text(text, partial(encode_layerwise, self.backbone, [text], self.tables())) for text in texts]
        with torch.no_grad():
            return join(of_one_length(self.backbone, encoded))

    def keep_text(self, text: str, encode: Callable[[], Text]) -> Text:
        """Returns an encoded text that is kept; what was not used for longest goes where there are too many."""
        known = self.kept_texts.pop(text, None)
        if known is None:
            with torch.no_grad():
                known = encode()
        self.kept_texts[text] = known  # the last one used goes last
        if sum(t.states.nbytes for t in self.kept_texts.values()) > KEPT_TEXTS * 2**20:
            del self.kept_texts[next(iter(self.kept_texts))]
        return known

    def read_all(self, texts: Sequence[str]) -> None:
        """Acts before the first step of a run, with all texts that it will read, or none if they cannot be listed."""

    @property
    def noise_levels(self) -> tuple[str, float]:
        """The density and the shift of the noise levels that are learned at; the shift 0 is that of the picture's size."""
        config, own = self.task.config, self.backbone.family.objective
        return own.density if config.density == OWN else config.density, config.shift or own.shift

    def draw_timesteps(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Draws the timesteps ``[B]`` that latents ``clean [B, C, h, w]`` are noised to, on the CPU."""
        return draw_timesteps(len(clean), self.backbone.schedule, generator, *self.noise_levels)

    def loss(self, batch: Batch, during: ExitStack) -> tuple[Tensor, Tensor]:
        """Returns two sums over the batch: the loss that is told, and what is added to it. What has to be open in the backward pass too
        goes into ``during``.
        """
        told = error(self.answer(batch.noised.x, batch.noised.t, batch.texts), batch.noised, batch.mask).sum()
        return told, torch.zeros_like(told)

    def answer(self, x: Tensor, t: Tensor, texts: Sequence[str]) -> Tensor:
        """Returns what the model with the concept as far as it is learned predicts of ``x [B, C, h, w]`` at ``t [B]`` with these texts, in
        fp32.
        """
        text = self.encode(texts)
        return self.backbone.predict(x, t, text.context, text.pooled).float()

    def regularization(self) -> Tensor:
        """Returns what is added to the loss once a step, whatever the pictures."""
        return torch.zeros(())

    def after_step(self) -> None:
        """Acts after a step of the optimizer."""

    def record(self) -> dict[str, Any]:
        """Returns what the concept's file says of the run beside its settings."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns tensors and facts that a resumed run needs beside parameters and optimizer."""
        return {}, {}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Takes back what ``state`` gave."""

    @property
    def preview_guidance(self) -> float:
        """Classifier-free guidance of previews."""
        return self.backbone.family.objective.cfg

    def preview(self, prompt: str) -> tuple[Text, Text, Predict | None]:
        """Returns the prompt, in which ``<name>`` stands for a concept, and the empty text as the model reads them, and what stands in
        for the backbone's prediction.
        """
        wanted, nothing = (encode_layerwise(self.backbone, [t], self.tables()) for t in (self.spoken(prompt), ""))
        return wanted, nothing, None

    def spoken(self, prompt: str) -> str:
        """Returns a prompt with the words of the task's concepts in the place of their handles."""
        for name, words in self.words_of.items():
            prompt = prompt.replace(f"<{name}>", " ".join(words))
        return prompt


class Method:
    """A way to learn concepts. ``name`` stands in files and on the command line, ``config`` is the class of its settings, ``learner`` that
    of what it trains, and ``defaults`` holds the settings of the loop in which it differs from ``TrainingConfig``.

    ``continual`` says whether a concept depends on those that were learned before it, ``joint`` whether several can be learned together,
    ``contrasts`` whether pictures are compared with words, which needs the ``contrast`` of a task.
    ``states_all`` and ``stated`` belong to the methods of the first version (``record``).
    """

    name: str
    config: type[MethodConfig]
    learner: type[Learner]
    defaults: Mapping[str, Any] = {}
    continual = False
    joint = False
    contrasts = False
    states_all = False
    stated: Mapping[str, Any] = {}

    def check_family(self, family: Family) -> None:
        """Raises ``ValueError`` for a family of models that the method cannot learn on."""
        if not family.layerwise:
            raise ValueError(
                f"method {self.name!r} needs layers that each read a text, and all layers of {family.title} read one: take method 'lora'"
            )

    def words(self, name: str, class_word: str) -> list[str]:
        """Returns the concept's words, which stand in captions in the place of the class word."""
        return concept_words(name, class_word)

    def words_by_name(self, task: Task) -> dict[str, list[str]]:
        """Returns the words of every concept of a task. Raises ``ValueError`` for several if the method learns one at a time."""
        if task.others and not self.joint:
            raise ValueError(f"method {self.name!r} learns one concept at a time, and {len(task.concepts)} were given: take another method")
        return {name: self.words(name, class_word) for name, class_word in task.concepts.items()}

    def templates(self, kind: str) -> tuple[str, ...]:
        """Returns the caption templates for a kind of concept."""
        return self.defaults.get("templates", TEMPLATES[kind])

    def reads(self, header: Mapping[str, Any]) -> bool:
        """Whether an earlier concept with that header is loaded for learning the next one."""
        return self.continual and header["method"] == LOW_RANK

    def remarks(self, data: Dataset) -> list[str]:
        """Returns what a person should know about learning from these pictures by this method."""
        return []

    def make_learner(self, backbone: Any, task: Task, earlier: Sequence[Concept], generator: torch.Generator) -> Learner:
        """Returns what is trained, as it is before the first step. All that is random comes from ``generator``."""
        return self.learner(backbone, task, self.words_by_name(task))

    def prepare(self, trainer: Any) -> None:
        """Acts before the first step of a task, while what is to be learned is attached. A run that goes on has its effect in its state."""

    def finish(self, trainer: Any) -> None:
        """Acts after the last step of a task, while what was learned is still attached."""
