"""CIDM: layer-wise token rows and low-rank factors in the cross-attention, kept apart from earlier concepts (3.1, recipe of 4.1)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters import attach, linears
from ...backbone import Backbone
from ...bank.concept import Concept
from ...causal import attention_layers
from ...concept_text import plans_of
from ...hub import watch_attention
from ...lowrank import LowRank
from ...method.attention import attention_loss
from ...method.consolidation import MODES, Consolidation, consolidation, shared_loss, shared_rows
from ...method.dependence import dependence
from ...models.family import Family
from ...painting.config import BY_KIND, EVERYWHERE, WORDS_AND_END
from ...painting.sampling import Predict
from ...painting.scope import widen, word_masks
from ...row_plan import END_OF_TEXT, RowPlan
from ...tokens import Table, Text, positions_of
from ..batches import Sample
from ..captions import split_caption
from ..config import MethodConfig, check_choices, check_least
from ..method import Batch, Learner, Method, ParameterGroup, Task
from ..objective import error
from .factors import begin_factors, check_rank
from .nearest import CLASS_WORD, NEAREST, STARTS, begin_nearest

GROUPS = ("block", "layer", "one")
REACHES = (BY_KIND, EVERYWHERE, WORDS_AND_END)  # at the words alone too little is learned: docs/training.md
NAME = "concept"  # of the words in a text's masks
# The dependence is computed in every second step and of the noisier half of timesteps, which its weight favours anyway: three more
# predictions cost as much as a step.
DEPENDENCE_STEPS, DEPENDENCE_FROM = 2, 0.5


@dataclass(frozen=True, kw_only=True)
class CidmConfig(MethodConfig):
    """The paper's settings; rates decay linearly to zero.

    ``targets`` names the layers that get factors (``models.blocks.TARGETS``, or a regular expression on their canonical names). ``alpha``
    scales the factors by ``alpha / rank`` while they learn, 0 stands for the rank; the file holds them at full scale. ``norm_stop``: when
    the mean norm of the concept's token rows reaches it, the rows stop for good and only the factors go on. ``consolidation`` is gamma_1 of
    Eq. 2 and weighs the regularizer ``mode``, ``shared`` weighs the low-rank form of the paper's R2. ``lr_text`` above 0 gives the
    attention of the text encoders factors too. ``attention`` weighs the regularization of where the words look, for pictures with masks.
    ``init_sigma`` is the standard deviation of the free adjective's row. ``groups`` says which layers share a row of a word.

    ``reach`` says at which words of a caption the factors of keys and values act while they learn, and the concept paints so too: by kind
    it learns at all of them, and a style paints at its own. ``dependence`` weighs the dependence term of ACCORD, which keeps how strongly
    the concept and the rest of a caption depend on each other. ``start`` says what the words begin as: the nouns of the class word, or
    the words of that concept of the class in the bank with which the base does best on the new pictures. Raises ``ValueError`` naming the
    setting that cannot work.
    """

    targets: str = "cross_attention"
    rank: int = 4
    alpha: float = 0.0
    lr_tokens: float = 1e-3
    lr_text: float = 0.0
    mode: str = MODES[0]
    consolidation: float = 0.1
    shared: float = 0.0
    norm_stop: float = 0.55
    init_sigma: float = 0.013
    groups: str = GROUPS[0]
    attention: float = 0.0
    reach: str = BY_KIND
    dependence: float = 0.0
    start: str = CLASS_WORD

    def __post_init__(self) -> None:
        check_least(self, 1, ("rank",))
        check_least(self, 0, ("alpha", "lr", "lr_tokens", "lr_text", "consolidation", "shared", "attention", "dependence"))
        check_choices(self, groups=GROUPS, mode=MODES, reach=REACHES, start=STARTS)

    @property
    def scale(self) -> float:
        """The factors' change is multiplied by this while they learn."""
        return (self.alpha or self.rank) / self.rank


class CidmLearner(Learner):
    """``tokens[encoder] [k, R, D]`` and ``up, down`` of every target layer; ``layers`` says which of the R rows of a word each layer reads.
    Concepts that are learned together have words of their own, k in all, and share the factors.

    ``earlier`` are the factors that the new ones are kept apart from, by ``regularizer`` if that is given and else by the mode of the
    settings. ``below`` are factors that the concept is learned on top of. Raises ``ValueError`` when the rank is above a layer's width.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        words: Mapping[str, Sequence[str]],
        earlier: Sequence[Mapping[str, LowRank]],
        generator: torch.Generator,
        regularizer: Consolidation | None = None,
        below: Mapping[str, LowRank] | None = None,
    ):
        super().__init__(backbone, task, words)
        config = self.settings
        layers: dict[str, Any] = linears(backbone, config.targets)
        self.names, self.scale = list(layers), config.scale
        shapes = {n: tuple(layer.weight.shape) for n, layer in layers.items()}
        check_rank(config.rank, shapes)
        self.layers = row_of_layer(backbone.family, list(backbone.cross_attention), config.groups)
        self.tokens = nn.ParameterDict()
        for encoder in backbone.encoders:
            first = [first_rows(backbone, noun, encoder, config.init_sigma, generator) for noun in task.concepts.values()]
            rows = torch.cat([own[: len(words[name])] for name, own in zip(task.concepts, first, strict=True)])
            self.tokens[encoder] = nn.Parameter(rows[:, None].repeat(1, 1 + max(self.layers), 1))
        apart_from = earlier if config.mode == "orthogonal" else None
        self.downs, self.ups = begin_factors(shapes, config.rank, generator, apart_from)
        text: dict[str, Any] = attention_layers(backbone.texts) if config.lr_text else {}
        sides = {n: tuple(layer.weight.shape) for n, layer in text.items()}
        self.text_names = list(sides)
        self.text_downs, self.text_ups = begin_factors(sides, config.rank, generator)
        self.regularizer = consolidation(config.mode, earlier, config.lr, generator) if regularizer is None else regularizer
        self.shared = shared_rows(earlier, 2 * config.rank) if config.shared else {}
        self.below = {n: f.to(backbone.device) for n, f in (below or {}).items()}
        if config.dependence and task.others:
            raise ValueError(f"dependence {config.dependence:g}: a caption of several concepts has no single rest, expected 0")
        if config.start == NEAREST and task.others:
            raise ValueError(f"start {NEAREST!r}: several concepts have no single nearest one, expected {CLASS_WORD!r}")
        self.norm_stop, self.began_as = config.norm_stop, ""  # the name of the concept whose words it began with
        self.limited = config.reach not in (BY_KIND, EVERYWHERE)
        self.marked: dict[str, Tensor] = {}  # where a text names the concept
        self.marks = torch.zeros(0, 0)  # where the factors act on the texts that the model reads now, [B, N]

    @property
    def settings(self) -> CidmConfig:
        config = self.task.config.method
        assert isinstance(config, CidmConfig)
        return config

    def groups(self) -> list[ParameterGroup]:
        config = self.settings
        groups = (
            (self.tokens.values(), config.lr_tokens),
            ([*self.ups, *self.downs], config.lr),
            ([*self.text_ups, *self.text_downs], config.lr_text),
        )
        return [ParameterGroup([p for p in parameters if p.requires_grad], lr) for parameters, lr in groups]

    def begin(self, concept: Concept) -> None:
        """Takes what a concept knows already; one of words alone, such as contrasted ones, begins the words. Raises ``ValueError`` if it
        was learned with other settings.
        """
        if concept.words and not concept.all_factors:
            return self.begin_words(concept)
        have = {"factors": self.factors(), "text factors": self.factors(text=True)}
        for what, known in (("factors", concept.factors), ("text factors", concept.text_factors)):
            mine = have[what]
            if {n: f.up.shape for n, f in mine.items()} != {n: f.up.shape for n, f in known.items()}:
                raise ValueError(
                    f"concept {concept.name!r} has {len(known)} {what} of rank {_rank(known)}, these settings learn {len(mine)} of rank "
                    f"{_rank(mine)}: continue with the settings it was learned with"
                )
        if concept.tokens.keys() != self.tokens.keys() or any(self.tokens[e].shape != t.shape for e, t in concept.tokens.items()):
            raise ValueError(f"concept {concept.name!r} has other words or token groups than these settings: continue with those")
        self.copy_factors(concept.factors)
        self.copy_factors(concept.text_factors, text=True)
        self.copy_words(concept.tokens)

    def same_shape(self, concept: Concept) -> bool:
        """Whether the words can begin as those of a concept: of the same class, with as many rows for the same layers."""
        alike = {e: t.shape for e, t in concept.tokens.items()} == {e: t.shape for e, t in self.tokens.items()}
        return concept.class_word == self.task.class_word and alike and concept.token_layers == self.layers

    @torch.no_grad()
    def copy_words(self, rows: Mapping[str, Tensor]) -> None:
        """Begins from the token rows of words, by encoder."""
        for encoder, own in self.tokens.items():
            own.copy_(rows[encoder])

    @torch.no_grad()
    def begin_words(self, concept: Concept) -> None:
        """Begins every row as what its layers read of a concept's words, which may then grow by as much as those that begin as the class
        word. Raises ``ValueError`` for other words than its own.
        """
        norm, first = self.norm, [self.layers.index(row) for row in range(1 + max(self.layers))]
        for encoder, table in self.tokens.items():
            known = concept.tokens.get(encoder, torch.zeros(0, 1, 0))
            layers = concept.token_layers or tuple(range(known.shape[1]))
            if concept.words != self.words or len(layers) != len(self.layers) or known.shape[-1] != table.shape[-1]:
                raise ValueError(f"concept {concept.name!r} has other words than these settings: continue with those it was made with")
            table.copy_(torch.stack([known[:, layers[layer]] for layer in first], 1))
        self.norm_stop += self.norm - norm

    @torch.no_grad()
    def copy_factors(self, known: Mapping[str, LowRank], text: bool = False) -> None:
        """Begins from factors at full scale."""
        for n, f in self.factors(text).items():
            f.up.copy_(known[n].up / self.scale)
            f.down.copy_(known[n].down)

    @contextmanager
    def attach(self) -> Iterator[None]:
        layers = {**linears(self.backbone), **attention_layers(self.backbone.texts)}
        with attach(layers, self.below), attach(layers, self.deltas()):
            yield

    def deltas(self) -> dict[str, Any]:
        """Returns what to add to the output of each layer while learning."""
        factors: dict[str, Any] = self.factors() | self.factors(text=True)
        if self.scale != 1:
            factors = {n: (lambda x, f=f: f(x) * self.scale) for n, f in factors.items()}
        if not self.limited:
            return factors
        at_words = {n: (lambda x, f=factors[n]: f(x) * self.acting(x)) for n in self.names if self.backbone.family.reads_text(n)}
        return factors | at_words

    def acting(self, x: Tensor) -> Tensor:
        """Returns where the factors act on texts ``x [B, N, C]``, ``[B, N, 1]``. Raises ``ValueError`` for other texts than were marked."""
        if self.marks.shape != x.shape[:2]:
            raise ValueError(
                f"the model reads {list(x.shape[:2])} tokens of texts and {list(self.marks.shape)} are marked: reach "
                f"{self.settings.reach!r} does not go together with this method, set {EVERYWHERE}"
            )
        return self.marks[..., None].to(x)

    def answer(self, x: Tensor, t: Tensor, texts: Sequence[str]) -> Tensor:
        if self.limited:
            rows = [self.mark(text) for text in texts]
            self.marks = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(x.device)  # what fills a short text up is none of it
        return super().answer(x, t, texts)

    def mark(self, text: str) -> Tensor:
        """Returns where the factors act on the tokens of a text, ``[N]``."""
        if text not in self.marked:
            masks = word_masks(self.backbone, text, {NAME: self.words})
            self.marked[text] = widen(masks[NAME], masks[END_OF_TEXT], self.settings.reach)
        return self.marked[text]

    def preview(self, prompt: str) -> tuple[Text, Text, Predict | None]:
        wanted, nothing, predict = super().preview(prompt)
        if not self.limited:
            return wanted, nothing, predict
        return replace(wanted, plans=(RowPlan(token_masks={NAME: self.mark(self.spoken(prompt))}),)), nothing, self.predict_marked

    def predict_marked(self, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor | None, chunks: int) -> Tensor:
        """Predicts with factors that act where the plans of a text's rows say."""
        nowhere = torch.zeros(text.shape[1], device=x.device)
        self.marks = torch.stack([plan.token_masks.get(NAME, nowhere).to(x.device) if plan else nowhere for plan in plans_of(text)])
        return self.backbone.predict(x, t, text, pooled)

    def factors(self, text: bool = False) -> dict[str, LowRank]:
        """Returns the factors themselves, not scaled, of the U-Net or of the text encoders."""
        names, ups, downs = (self.text_names, self.text_ups, self.text_downs) if text else (self.names, self.ups, self.downs)
        return {n: LowRank(u, d) for n, u, d in zip(names, ups, downs, strict=True)}

    def learned_factors(self, text: bool = False) -> dict[str, LowRank]:
        """Returns the factors for the concept file, at full scale."""
        return {n: LowRank(self.scale * f.up.detach().cpu(), f.down.detach().cpu()) for n, f in self.factors(text).items()}

    def concept_parts(self) -> dict[str, Any]:
        return {
            "words": self.words,
            "factors": self.learned_factors(),
            "tokens": {encoder: rows.detach().cpu() for encoder, rows in self.tokens.items()},
            "token_layers": self.layers,
            "text_factors": self.learned_factors(text=True),
        }

    def parts_by_name(self) -> dict[str, dict[str, Any]]:
        whole, parts, first = self.concept_parts(), {}, 0
        for name, words in self.words_of.items():
            own = slice(first, first + len(words))
            parts[name] = whole | {"words": words, "tokens": {encoder: rows[own].clone() for encoder, rows in whole["tokens"].items()}}
            first = own.stop
        return parts

    def tables(self) -> dict[str, Table]:
        return {w: Table({e: t[i] for e, t in self.tokens.items()}, self.layers) for i, w in enumerate(self.words)}

    @property
    def words_learn(self) -> bool:
        return all(t.requires_grad for t in self.tokens.values())

    @property
    def texts_learn(self) -> bool:
        return self.words_learn or bool(self.settings.lr_text)

    def freeze_words(self) -> None:
        """Ends the learning of the words: from here on texts are constants."""
        for rows in self.tokens.values():
            rows.requires_grad_(False)
            rows.grad = None

    @property
    def norm(self) -> float:
        """Mean norm of the token rows of the first encoder."""
        return float(next(iter(self.tokens.values())).detach().norm(dim=-1).mean())

    def loss(self, batch: Batch, during: ExitStack) -> tuple[Tensor, Tensor]:
        seen = during.enter_context(self.watching(batch.samples))
        guess = self.answer(batch.noised.x, batch.noised.t, batch.texts)
        told = error(guess, batch.noised, batch.mask).sum()
        extra = self.attention(seen, batch.samples) if seen else torch.zeros_like(told)
        return told, extra + self.depend(batch, guess) if self.settings.dependence else extra

    def depend(self, batch: Batch, guess: Tensor) -> Tensor:
        """Returns the weighted dependence, summed over the pictures, in the steps and at the noise in which it is computed. Captions that
        say nothing but the concept, or nothing of it, have none.
        """
        if batch.step % DEPENDENCE_STEPS:
            return torch.zeros((), device=guess.device)
        share, parts = batch.noised.t / len(self.backbone.schedule.sigma), [split_caption(text, self.words) for text in batch.texts]
        rows = [i for i, (alone, rest) in enumerate(parts) if alone and rest and share[i] >= DEPENDENCE_FROM]
        if not rows:
            return torch.zeros((), device=guess.device)
        texts = [parts[i][0] for i in rows] + [parts[i][1] for i in rows] + [""] * len(rows)
        marks = self.marks
        with torch.no_grad():
            singles = self.answer(batch.noised.x[rows].repeat(3, 1, 1, 1), batch.noised.t[rows].repeat(3), texts)
        self.marks = marks  # a backward pass that computes layers again reads the caption
        single, around, nothing = singles.chunk(3)
        return DEPENDENCE_STEPS * self.settings.dependence * dependence(guess[rows], single, around, nothing, share[rows]).sum()

    def watching(self, samples: Sequence[Sample]) -> AbstractContextManager[list[Any]]:
        """Collects the attention of the words if that is regularized and there are masks to do it by."""
        if self.settings.attention and any(s.mask is not None for s in samples):
            return watch_attention(self.backbone.cross_attention.values())
        return nullcontext([])

    def attention(self, seen: Sequence[Any], samples: Sequence[Sample]) -> Tensor:
        """Returns the weighted attention loss of the samples that have masks, summed."""
        total = torch.zeros((), device=self.backbone.device)
        for row, shown in enumerate(samples):
            for words in self.words_of.values():
                positions = positions_of(self.backbone, shown.text, words)
                if shown.mask is not None and positions:
                    total = total + attention_loss(seen, row, positions, shown.mask)
        return self.settings.attention * total

    def regularization(self) -> Tensor:
        factors = self.factors()
        extra = self.settings.consolidation * self.regularizer.loss(factors)
        return extra + self.settings.shared * shared_loss(factors, self.shared) if self.shared else extra

    def after_step(self) -> None:
        self.regularizer.after_step(self.factors())
        if self.words_learn and self.norm >= self.norm_stop:
            self.freeze_words()

    def record(self) -> dict[str, Any]:
        return {"began_as": self.began_as} if self.began_as else {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {f"term.{n}": t for n, t in self.regularizer.state().items()}, self.facts()

    def facts(self) -> dict[str, Any]:
        """Returns what a resumed run has to know of the words: whether they stopped, and, if they began as others, which and where they
        stop.
        """
        began = {"began_as": self.began_as, "norm_stop": self.norm_stop} if self.began_as else {}
        return {"frozen": not self.words_learn, **began}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.regularizer.load({n.removeprefix("term."): t for n, t in tensors.items() if n.startswith("term.")})
        self.began_as, self.norm_stop = facts.get("began_as", ""), facts.get("norm_stop", self.norm_stop)
        if facts["frozen"]:
            self.freeze_words()


class Cidm(Method):
    name, config, learner = "cidm", CidmConfig, CidmLearner
    continual = joint = states_all = True

    def make_learner(self, backbone: Backbone, task: Task, earlier: Sequence[Concept], generator: torch.Generator) -> CidmLearner:
        return CidmLearner(backbone, task, self.words_by_name(task), [c.factors for c in earlier], generator)

    def prepare(self, trainer: Any) -> None:
        if trainer.learner.settings.start == NEAREST:
            begin_nearest(trainer)


def _rank(factors: Mapping[str, LowRank]) -> int:
    return next((f.rank for f in factors.values()), 0)


def row_of_layer(family: Family, names: Sequence[str], groups: str) -> tuple[int, ...]:
    """Returns which row of a word each cross-attention layer reads: its own (``layer``), that of its ``block``, or the only ``one``."""
    keys = {"layer": names, "block": [family.stage_of(n) for n in names], "one": [""] * len(names)}[groups]
    rows = list(dict.fromkeys(keys))
    return tuple(rows.index(key) for key in keys)


def first_rows(backbone: Backbone, class_word: str, encoder: str, sigma: float, generator: torch.Generator) -> Tensor:
    """Returns the rows that the words begin with, ``[1 + nouns, D]``: a random adjective, then each noun of the class word."""
    nouns = [noun_row(backbone, noun, encoder).cpu() for noun in class_word.split()]
    adjective = torch.randn(nouns[0].shape, generator=generator) * sigma
    return torch.stack([adjective, *nouns])


def noun_row(backbone: Backbone, noun: str, encoder: str) -> Tensor:
    """Returns the token row ``[D]`` of a noun, the mean if the tokenizer splits it."""
    ids, kind = backbone.tokenize(noun, encoder)[0], backbone.family.encoder(encoder)
    end = int((ids == kind.end).nonzero()[0])
    return backbone.token_rows(ids[kind.first : end].to(backbone.device), encoder).mean(0)
