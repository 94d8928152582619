"""The contrast of words, before a model learns them: rows of new words follow pictures of their concepts and keep away from the words of
others (CLIF, Lin et al. 2024). Those of the concepts that a bank has are frozen and wrong for every picture (continual CLIF, ours).
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..bank.bank import Bank, check_base
from ..bank.concept import Concept
from ..models.family import Family
from ..tokens import concept_words
from .canvases import Lesson, canvases_of, without_masks
from .comparison import Comparison, speeches
from .config import EXISTING, check_least
from .method import Task
from .methods import configure
from .methods.cidm import first_rows
from .spaces import Contrast, encoder_of

METHOD = "contrast"


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """How long words are contrasted: ``steps`` of ``batch`` canvases out of so many ``canvases`` that are drawn once, at rate ``lr``, which
    decays to zero. The words stop when the mean norm of their rows reaches ``norm_stop``. Raises ``ValueError`` naming what cannot work.
    """

    steps: int = 300
    batch: int = 64
    canvases: int = 256
    lr: float = 1e-4
    norm_stop: float = 0.55
    init_sigma: float = 0.013
    seed: int = 0

    def __post_init__(self) -> None:
        check_least(self, 1, ("steps", "batch", "canvases"))
        check_least(self, 0, ("lr", "norm_stop", "init_sigma"))

    @classmethod
    def suiting(cls, family: Family, **settings: Any) -> "ContrastConfig":
        """Returns the configuration that suits models of a family, but for ``settings``."""
        return cls(**{**family.recipes.get(METHOD, {}), **settings})


class NewWords:
    """The words of some lessons: one row each, which all layers read, in ``tables[encoder] [k, D]``. Those of text encoders that no space
    reads stay as they begin: as the nouns of the class word, behind a random adjective.
    """

    def __init__(self, backbone: Backbone, lessons: Sequence[Lesson], by: Contrast, config: ContrastConfig):
        generator, learning = torch.Generator().manual_seed(config.seed), {encoder_of(backbone, space) for space in by.spaces}
        self.words_of = {lesson.name: concept_words(lesson.name, lesson.class_word) for lesson in lessons}
        self.tables: dict[str, nn.Parameter] = {}
        for encoder in backbone.encoders:
            own = [first_rows(backbone, lesson.class_word, encoder, config.init_sigma, generator) for lesson in lessons]
            self.tables[encoder] = nn.Parameter(torch.cat(own).to(backbone.device), requires_grad=encoder in learning)

    @property
    def words(self) -> list[str]:
        return [word for own in self.words_of.values() for word in own]

    @property
    def learned(self) -> list[nn.Parameter]:
        return [table for table in self.tables.values() if table.requires_grad]

    @property
    def norm(self) -> float:
        """Mean norm of the rows that learn, of the encoder in which it is largest."""
        return max(float(table.detach().norm(dim=-1).mean()) for table in self.learned)

    def rows(self) -> dict[str, dict[str, Tensor]]:
        """Returns the row ``[D]`` of each word by encoder."""
        return {encoder: dict(zip(self.words, table, strict=True)) for encoder, table in self.tables.items()}

    def tokens_of(self, name: str) -> dict[str, Tensor]:
        """Returns the rows of a concept's words as its file has them, ``[k, 1, D]`` by encoder."""
        own = [self.words.index(word) for word in self.words_of[name]]
        return {encoder: table.detach()[own, None].float().cpu().clone() for encoder, table in self.tables.items()}


class Contrasted(NamedTuple):
    """What a contrast made: the words as concepts without factors, the loss of every step, how often canvases are found by their texts
    before and after, and what a person should know.
    """

    concepts: list[Concept]
    losses: list[float]
    found: tuple[float, float]
    warnings: list[str]


def contrast(
    backbone: Backbone,
    by: Contrast,
    lessons: Sequence[Lesson],
    frozen: Sequence[Concept],
    config: ContrastConfig,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Contrasted:
    """Tells the words of all lessons apart, from each other and from those of ``frozen`` concepts, whose rows stay.

    ``on_step`` hears the step, their number and the loss, and may raise to stop. Raises ``ValueError`` for no lesson or no space, for names
    that are alike, and for a lesson in which nothing can be cut out, and ``FloatingPointError`` for a loss that is no number.
    """
    check_lessons(lessons, by)
    new = NewWords(backbone, lessons, by, config)
    canvases = canvases_of(lessons, new.words_of, by.common, config.canvases, by.side, config.seed)
    others = speeches(frozen, [lesson.class_word for lesson in lessons], backbone.encoders, backbone.device)
    comparison = Comparison(backbone, by, canvases, others)
    losses: list[float] = []
    before = comparison.found(new.rows())
    optimizer = torch.optim.AdamW(new.learned, lr=config.lr, weight_decay=0.0)
    while len(losses) < config.steps and (not config.norm_stop or new.norm < config.norm_stop):
        step = len(losses)
        optimizer.param_groups[0]["lr"] = config.lr * (1 - step / config.steps)
        optimizer.zero_grad(set_to_none=True)
        loss = comparison.loss(new.rows(), config.batch, random.Random(f"{config.seed}/{step}"))
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"the loss is {float(loss)} at step {step + 1}: lower the rate; the bank is unchanged")
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        on_step(step + 1, config.steps, losses[-1])
    concepts = [concept_of(backbone, lesson, new) for lesson in lessons]
    remarks = [*remarks_on(lessons, by, frozen), *unread(backbone, by)]
    return Contrasted(concepts, losses, (before, comparison.found(new.rows())), remarks)


def check_lessons(lessons: Sequence[Lesson], by: Contrast) -> None:
    """Raises ``ValueError`` for lessons that cannot be contrasted."""
    if not lessons or not by.spaces:
        raise ValueError(f"{len(lessons)} concepts and {len(by.spaces)} image towers: expected one of each at least")
    config = configure("cidm")
    first, *others = lessons
    Task(name=first.name, class_word=first.class_word, config=config, others={lesson.name: lesson.class_word for lesson in others})
    if len({lesson.name for lesson in lessons}) < len(lessons):
        raise ValueError(f"of the names {', '.join(lesson.name for lesson in lessons)} two are the same: name every concept differently")


def concept_of(backbone: Backbone, lesson: Lesson, new: NewWords) -> Concept:
    """Returns a concept of words alone."""
    return Concept(
        name=lesson.name,
        class_word=lesson.class_word,
        architecture=backbone.architecture,
        fingerprint=backbone.fingerprint,
        words=tuple(new.words_of[lesson.name]),
        tokens=new.tokens_of(lesson.name),
        token_layers=(0,) * len(backbone.cross_attention),
    )


def remarks_on(lessons: Sequence[Lesson], by: Contrast, frozen: Sequence[Concept]) -> list[str]:
    """Returns what a person should know about what is compared."""
    found = [line for lesson in lessons for line in (*lesson.data.warnings, *without_masks(lesson))]
    if not by.common:
        found.append("there are no common things, so concepts stand beside each other alone")
    if wordless := [f"<{concept.name}>" for concept in frozen if not concept.words]:
        found.append(f"{', '.join(wordless)}: without words of their own there is nothing to keep apart from")
    return found


def unread(backbone: Backbone, by: Contrast) -> list[str]:
    """Returns a line for the text encoders that no space reads."""
    idle = [encoder for encoder in backbone.encoders if encoder not in {encoder_of(backbone, space) for space in by.spaces}]
    return [f"no image tower goes with {', '.join(idle)}: the words' rows for it stay as they begin"] if idle else []


class Told(NamedTuple):
    """What ``contrast_into`` did: the bank reopened, the loss of every step, how often canvases are found by their texts before and after,
    and what a person should know. What was there already has no new losses.
    """

    bank: Bank
    losses: list[float]
    found: tuple[float, float]
    warnings: list[str]


def contrast_into(
    bank: Bank,
    backbone: Backbone,
    by: Contrast,
    lessons: Sequence[Lesson],
    config: ContrastConfig,
    existing: str = EXISTING[0],
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Told:
    """Contrasts the words of all lessons with each other and with those of the bank's earlier concepts, and writes them there as concepts
    without factors, for training to go on from.

    The same again does nothing if the bank has it, also where training went on from it. Another concept of a name is replaced, or refused
    if ``existing`` says so. Raises what ``contrast`` does, and ``ValueError`` if the bank is for another architecture, has a damaged file
    or cannot be written to; it changes only when all is done.
    """
    check_lessons(lessons, by)
    if existing not in EXISTING[:2]:
        raise ValueError(f"existing {existing!r}: expected one of {', '.join(EXISTING[:2])}, as contrasted words begin anew")
    for name in bank.names:
        check_base(bank.headers[name], backbone.architecture, backbone.fingerprint)
    names = [lesson.name for lesson in lessons]
    before = max((bank.before(name) for name in names), key=len)
    earlier = [replace(bank.get(name), factors={}, text_factors={}) for name in before if name not in names]  # their words alone count
    digest = digest_of(backbone, by, lessons, earlier, config)
    known = {name: bank.headers[name]["training"] for name in names if name in bank.names}
    if len(known) == len(names) and all(digest in (training.get("task"), training.get("began")) for training in known.values()):
        return Told(bank, [], tuple(next(iter(known.values())).get("found", (0.0, 0.0))), [])
    if known and existing == "refuse":
        raise ValueError(
            f"bank {bank.folder.name!r} has a concept {next(iter(known))!r} already: choose another name, or let it be replaced"
        )
    bank.check_writable()
    done = contrast(backbone, by, lessons, earlier, config, on_step)
    record = {"method": METHOD, "kind": "thing", **asdict(config), "task": digest, "loss": mean(done.losses), "steps": len(done.losses)}
    record |= {"losses": [round(loss, 5) for loss in done.losses], "found": [round(share, 4) for share in done.found]}
    replaced = [f"<{name}> was in the bank, and is words alone now" for name, training in known.items() if training.get("method") != METHOD]
    concepts = [
        replace(concept, training=record | {"pictures": len(own.data)}) for concept, own in zip(done.concepts, lessons, strict=True)
    ]
    return Told(bank.add(*concepts), done.losses, done.found, [*done.warnings, *replaced])


def mean(losses: Sequence[float]) -> float:
    """Returns the mean of the last losses; 0 of none."""
    return sum(losses[-50:]) / max(1, len(losses[-50:]))


def digest_of(backbone: Backbone, by: Contrast, lessons: Sequence[Lesson], earlier: Sequence[Concept], config: ContrastConfig) -> str:
    """Returns a hash of all that decides what words become."""
    before = [c.training.get("began") or c.training.get("task") or c.words_digest for c in earlier]  # also when training went on from it
    words = [METHOD, backbone.architecture, backbone.fingerprint, asdict(config), by.digest, before]
    digest = hashlib.sha256(json.dumps([*words, [(lesson.name, lesson.class_word) for lesson in lessons]]).encode())
    cut = [tensor for cut in by.common for tensor in (cut.picture, cut.shown)]
    shown = [tensor for lesson in lessons for tensor in (*lesson.data.pictures, *lesson.data.masks)]
    for tensor in (*shown, *cut):
        if tensor is not None:
            digest.update(repr(tuple(tensor.shape)).encode() + tensor.mul(255).round().to("cpu").byte().numpy().tobytes())
    return digest.hexdigest()[:16]
