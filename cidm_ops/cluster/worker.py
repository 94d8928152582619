"""A worker: a process on some machine that keeps a base loaded and does one piece of work after another.

Ray holds it as an actor; nothing here knows Ray. What goes wrong is an answer and no exception, as the one who asked has to know whether
another machine could do better.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..printable import one_line
from .tasks import Line, Needs, is_address
from .versions import check_versions

DONE, STOPPED, REFUSED, HERE = "done", "stopped", "refused", "here"


@dataclass(frozen=True)
class Terms:
    """What all workers of a command have in common: the base and how it is loaded, and the ``versions`` that they must have."""

    base: str
    size: int | None = None
    device: str | None = None
    dtype: str | None = None
    on_cuda: str = "bfloat16"
    seed: int = 0
    bank: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Piece:
    """A piece of work by its name: the method of the worker, its arguments, and what it asks of a machine. ``tries`` counts how often it
    failed without having come further, ``step`` is how far it was seen.
    """

    name: str
    what: str
    arguments: Sequence[Any]
    needs: Needs = (1.0, 0.0, 0.0)
    tries: int = 0
    step: int = 0
    failed_on: list[str] = field(default_factory=list)
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """How a piece of work ended: ``done`` with its value, ``stopped`` on request, ``refused`` for a reason that every machine would have,
    or failed for one that lies ``here``: a full disk, a missing file, too little memory.
    """

    kind: str
    value: Any = None
    reason: str = ""
    warnings: Sequence[str] = ()


class Stopped(Exception):
    """Raised within a step when the work is to end."""


class Worker:
    """``ready`` loads the base; ``do`` does a piece of work, which is a method by its name. ``where`` and ``stop`` are called meanwhile."""

    def __init__(self, terms: Terms):
        self.terms, self.stopping, self.progress = terms, False, (0, 0)
        self.kept: dict[str, Any] = {}  # what is the same for every piece

    def ready(self) -> tuple[str, int]:
        """Loads the base, and returns the machine and the process. Raises ``ValueError`` for other versions than the command's, and
        ``RuntimeError`` naming the machine where the base cannot be loaded.
        """
        check_versions(self.terms.versions)
        try:
            self.load()
        except Exception as error:
            raise RuntimeError(f"{platform.node()}: {one_line(error)}") from error
        return platform.node(), os.getpid()

    def load(self) -> None:
        import torch
        from transformers.utils.logging import disable_progress_bar

        from ..engines.diffusers import fastest_device, load

        disable_progress_bar()
        terms = self.terms
        device = torch.device(terms.device) if terms.device else fastest_device()
        dtype = terms.dtype or (terms.on_cuda if device.type == "cuda" else "float32")
        self.backbone: Any = load(terms.base, device, getattr(torch, dtype))

    def where(self) -> tuple[int, int]:
        """Returns the step that the work is at, and how many there are; 0 where that is not known."""
        return self.progress

    def stop(self) -> None:
        """Has the work end after the step that it is in."""
        self.stopping = True

    def do(self, what: str, *arguments: Any) -> Answer:
        """Does a piece of work, and answers how it ended."""
        from ..training.memory import is_out_of_memory

        self.progress = (0, 0)
        told: list[str] = []
        try:
            value = getattr(self, what)(*arguments, told.append)
        except Stopped:
            return Answer(STOPPED, warnings=told)
        except (OSError, MemoryError) as error:
            return Answer(HERE, reason=f"{platform.node()}: {one_line(error) or type(error).__name__}", warnings=told)
        except (ValueError, KeyError, FloatingPointError, RuntimeError) as error:
            if is_out_of_memory(error):
                return Answer(HERE, reason=f"{platform.node()}: memory is short ({one_line(error)[:200]})", warnings=told)
            said = error.args[0] if isinstance(error, KeyError) else error
            return Answer(REFUSED, reason=one_line(said), warnings=told)
        return Answer(DONE, value, warnings=told)

    def learn(self, place: str, line: Line, beside: Sequence[str], tell: Callable[[str], None]) -> Any:
        """Learns a concept beside others of its wave, and returns what is to be written into the bank at a place."""
        from ..bank.bank import Bank
        from ..training.checkpoint import checkpoint_file
        from ..training.task import SAVE_EVERY, learn_for

        with tempfile.TemporaryDirectory() as room:
            copy = copied(place, line.name)
            data, task = task_of(line, self.backbone, self.terms, Path(room))
            bank = Bank(copy.pull() if copy else place)

            def on_step(run: Any) -> None:
                self.progress = (run.step, run.config.steps)
                if copy and run.step % SAVE_EVERY == 0 and not run.done:
                    copy.push(checkpoint_file(bank, line.name))
                if self.stopping:
                    raise Stopped

            try:
                return learn_for(bank, self.backbone, data, replace(task, beside=beside), on_step=on_step, tell=tell)
            finally:
                if copy and checkpoint_file(bank, line.name).exists():
                    copy.push(checkpoint_file(bank, line.name))

    def paint(self, out: Path, task: Any, template: str, seeds: Sequence[int], sampling: Any, tell: Callable[[str], None]) -> int:
        """Paints the pictures of one prompt that are painted together, into the folder of an evaluation."""
        from ..bank.bank import Bank
        from ..evaluation.protocol import paint_missing

        if "bank" not in self.kept:
            self.kept["bank"] = Bank(self.terms.bank)
        return paint_missing(out, self.backbone, self.kept["bank"], [(task, template, list(seeds))], sampling)

    def embed(self, out: Path, vision: str, task: Any, seeds: Sequence[int], tell: Callable[[str], None]) -> None:
        """Embeds the pictures of one concept, beside them."""
        from ..engines.towers import load_tower
        from ..evaluation.protocol import embed_task

        if "tower" not in self.kept:
            self.kept["tower"] = load_tower(vision)
        embed_task(out, self.kept["tower"], task, seeds)

    def sequence(self, wanted: Any, training: str, seed: int, tell: Callable[[str], None]) -> None:
        """Learns the concepts of a benchmark in order, by one training with one seed."""
        self.bench_of(wanted).learn(training, seed)

    def scores(self, wanted: Any, asked: Any, method: Any, tell: Callable[[str], None]) -> None:
        """Paints and scores every concept of a benchmark once."""
        self.bench_of(wanted).scores(asked.name, method, asked.seed, asked.strength, asked.first)

    def bench_of(self, wanted: Any) -> Any:
        if "bench" not in self.kept:
            self.kept["bench"] = wanted.bench(self.backbone)
        return self.kept["bench"]


def copied(bank: str, name: str) -> Any:
    """Returns this machine's copy of a bank that lies at an address; None for a folder."""
    if not is_address(bank):
        return None
    from .store import StoreCopy

    return StoreCopy(bank, name=name)


def task_of(line: Line, backbone: Any, terms: Terms, room: Path) -> tuple[Any, Any]:
    """Returns the pictures and the task of a line, as ``cidm train`` makes them of its options. What lies at an address is copied into
    ``room`` first.
    """
    from ..training.folder import from_folder
    from ..training.method import Task
    from ..training.methods import configure_for, method_named

    method, kind = method_named(line.method), "style" if line.style else "thing"
    seed = terms.seed if line.seed is None else line.seed
    config = configure_for(backbone.family, method.name, seed=seed, kind=kind, templates=method.templates(kind), **line.settings)
    size = terms.size or backbone.size
    data = from_folder(here(line.images, room / "images"), size, line.fit, line.flip)
    prior = from_folder(here(line.prior, room / "prior"), size, line.fit) if line.prior else None
    config = config.parse(line.set)
    task = Task(name=line.name, class_word=line.class_word, config=config, existing=line.existing, prior=prior)
    if not method.contrasts:
        return data, task
    from ..evaluation.contrast import contrast_by

    return data, replace(task, contrast=contrast_by(backbone, [line.vision] if line.vision else [], seed=seed))


def here(place: str, room: Path) -> Path:
    """Returns a folder of this machine: the place itself, or a copy of what lies at an address."""
    if not is_address(place):
        return Path(place)
    from .store import fetch

    return fetch(place, room)


def check_line(line: Line) -> None:
    """Raises ``ValueError`` if the settings of a line cannot be, as far as that is known without a base."""
    from ..training.config import EXISTING, FITS, check_choices
    from ..training.method import Task
    from ..training.methods import configure, method_named

    check_choices(line, fit=FITS, existing=EXISTING)
    method = method_named(line.method)
    if line.vision and not method.contrasts:
        raise ValueError(f"'vision' is {line.vision!r}, and method {method.name!r} looks at no pictures by it: leave it out")
    config = configure(method.name, **line.settings).parse(line.set)
    Task(name=line.name, class_word=line.class_word, config=config)
