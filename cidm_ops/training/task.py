"""One task of a sequence: learn a concept into a bank, or several together, go on where it was stopped, or find it learned already."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from ..backbone import Backbone, TransformerBackbone
from ..bank.bank import Bank, check_base
from ..bank.concept import Concept
from ..bank.concept import digest as tensors_digest
from ..models.family import Family
from .checkpoint import checkpoint_file, resume_run, save_run
from .dataset import Dataset
from .method import Method, Task
from .methods import method_of
from .prior import imagine
from .record import counting_settings
from .stops import hold_signals
from .trainer import Trainer

SAVE_EVERY = 50  # steps
RATES = {"lr", "lr_tokens"}
FAR = 8.0  # a rate that differs by so much from what suits a base is remarked on


class Learned(NamedTuple):
    """This is what a task made: the bank reopened, its first concept, the loss of every step, and what a person should know."""

    bank: Bank
    concept: Concept
    losses: list[float]
    warnings: list[str]


@dataclass(frozen=True)
class Made:
    """This is what a task made before anybody wrote it into the bank: its concepts as their files are to hold them, none where the bank has
    them so already; the loss of every step, and what a person should know.
    """

    concepts: list[Concept]
    losses: list[float]
    warnings: list[str]


@dataclass(frozen=True)
class Plan:
    """How a task that is to be learned begins: its digest, and the concept it goes on from with that one's own digest."""

    digest: str
    start: Concept | None = None
    began: str = ""


def learn_into(
    bank: Bank,
    backbone: Backbone | TransformerBackbone,
    data: Dataset,
    task: Task,
    *,
    on_step: Callable[[Trainer], None] = lambda trainer: None,
    on_picture: Callable[[int, int], None] = lambda done, count: None,
    tell: Callable[[str], None] = lambda said: None,
) -> Learned:
    """Learns a concept after those before it in the bank, and writes it there; with others, if the task has any, and then all or none.

    The same task again (base, pictures, captions, settings and earlier concepts alike) learns nothing if the bank has it, only its
    kind becomes the settings', and goes on from its last step if it was stopped. Without pictures of the plain class in the task the base
    paints some if the settings have a weight for them.

    ``on_step`` is called after every step, ``on_picture`` while the base paints; both may raise to stop. Whatever ends a run in mid-way,
    the state of its last whole step is kept first, but for a loss that no run comes back from. ``tell`` hears, before learning, what a
    person should know, and where a run that was ended goes on. Raises ``ValueError`` before learning if the masks of all pictures are
    empty, the method cannot learn several together, or the bank is for another architecture, has a damaged file or cannot be written to;
    the bank changes only when all is done.
    """
    begun = begin(bank, backbone, data, task, on_picture, tell)
    if isinstance(begun, Learned):
        if (renewed := of_kind(bank, task)) and task.processes.first:
            bank = bank.add(*renewed)
        return begun._replace(bank=bank, concept=bank.get(task.name))
    trainer, plan, warnings = begun
    file = checkpoint_file(bank, task.name)
    with keep_on_error(trainer, file, plan.digest, tell):
        run_to_end(trainer, file, plan.digest, on_step)
        if task.others:  # whatever ends the program between two files, the rest is written when it runs again
            save_run(trainer, file, plan.digest)
        bank, concept = store(bank, trainer, plan)
    if task.processes.first:
        file.unlink(missing_ok=True)
    return Learned(bank, concept, trainer.losses, [*warnings, *trainer.warnings])


def learn_for(
    bank: Bank,
    backbone: Backbone | TransformerBackbone,
    data: Dataset,
    task: Task,
    *,
    on_step: Callable[[Trainer], None] = lambda trainer: None,
    tell: Callable[[str], None] = lambda said: None,
) -> Made:
    """Learns as ``learn_into`` does and leaves it to the caller to write what was made into the bank: the state of the finished run stays
    where runs keep theirs, so that nothing is learned twice if nobody does. Raises what ``learn_into`` does.
    """
    begun = begin(bank, backbone, data, task, lambda done, count: None, tell)
    if isinstance(begun, Learned):
        return Made(of_kind(bank, task), begun.losses, begun.warnings)
    trainer, plan, warnings = begun
    file = checkpoint_file(bank, task.name)
    with keep_on_error(trainer, file, plan.digest, tell):
        run_to_end(trainer, file, plan.digest, on_step)
        save_run(trainer, file, plan.digest)
    return Made(concepts_of(trainer, plan), trainer.losses, [*warnings, *trainer.warnings])


def begin(
    bank: Bank,
    backbone: Backbone | TransformerBackbone,
    data: Dataset,
    task: Task,
    on_picture: Callable[[int, int], None],
    tell: Callable[[str], None],
) -> Learned | tuple[Trainer, Plan, list[str]]:
    """Returns what the bank has of the very same task, or the run that is to be taken to its end, where it was left, with its plan and what
    a person should know.
    """
    method = task.method or method_of(task.config)
    method.words_by_name(task)
    method.check_family(backbone.family)
    data = data.sized_for(backbone.family)
    task = replace(task, prior=task.prior and task.prior.sized_for(backbone.family))
    data.check_masks()
    warnings = [w for n in bank.names if (w := check_base(bank.headers[n], backbone.architecture, backbone.fingerprint))]
    warnings += remarks_on(data, task, method, backbone.family)
    before = earlier_names(bank, task)
    plan = find_or_plan(bank, backbone, data, task, method)
    task.processes.check_same("task" if isinstance(plan, Concept) else f"task {plan.digest}")
    warnings += remarks_on_start(bank, task, plan)
    if isinstance(plan, Concept):
        return Learned(bank, bank.get(task.name), list(plan.training["losses"]), warnings)
    bank.check_writable()
    if task.config.prior and task.prior is None:
        task = replace(task, prior=imagine_prior(backbone, data, task, on_picture))
    earlier = [bank.get(n) for n in before if method.reads(bank.headers[n])]
    trainer = Trainer(backbone, data, task, method=method, earlier=earlier, start=plan.start)
    if reason := resume_run(trainer, checkpoint_file(bank, task.name), plan.digest):
        trainer.warnings.append(reason)
    for warning in (*warnings, *trainer.warnings):
        tell(warning)
    return trainer, plan, warnings


def remarks_on(data: Dataset, task: Task, method: Method, family: Family) -> list[str]:
    """Returns what a person should know about the pictures of a task, whichever way they came, and about settings that cannot suit the
    base.
    """
    plain = [f"{warning} (pictures of the plain class)" for warning in task.prior.warnings] if task.prior else []
    return [
        *data.remarks(task.plain),
        *data.unsuited_size(family),
        *method.remarks(data),
        *plain,
        *unsuited_rates(task, method, family),
    ]


def unsuited_rates(task: Task, method: Method, family: Family) -> list[str]:
    """Returns a line for every rate of a task that is far from what suits bases of a family."""
    recipe, settings = family.recipes.get(method.name, {}), task.config.settings()
    found = []
    for name in RATES & recipe.keys() & settings.keys():
        times = settings[name] / recipe[name]
        if times and not 1 / FAR < times < FAR:
            much = f"{times:.0f} times" if times > 1 else f"{1 / times:.0f} times below"
            found.append(f"{name} is {settings[name]:g}, {much} what suits {family.title}, {recipe[name]:g}")
    return sorted(found)


def find_or_plan(bank: Bank, backbone: Backbone | TransformerBackbone, data: Dataset, task: Task, method: Method) -> Concept | Plan:
    """Returns the concept if the bank has it from the very same task, else how to learn it. Raises ``ValueError`` if the bank has another
    one of that name and the task is not to replace it.
    """
    digest = task_digest(bank, backbone, data, task, method)
    known = {name: bank.headers[name]["training"] for name in task.concepts if name in bank.names}
    own = known.get(task.name, {})
    before, beside = own.get("began", ""), own.get("beside", [])
    then = replace(task, beside=beside)  # it is the same task if it was learned beside others than it would be now
    same = digest if not before and [*task.beside] == beside else task_digest(bank, backbone, data, then, method, before)
    others = [name for name, training in known.items() if training and training.get("task") != same]
    if len(known) == len(task.concepts) and all(known.values()) and not others:
        return bank.get(task.name)
    if others and task.existing == "refuse":
        raise ValueError(f"bank {bank.folder.name!r} has a concept {others[0]!r} already: choose another name, or let it be replaced")
    if not others or task.existing != "continue":
        return Plan(digest)
    if task.others:
        raise ValueError(
            f"concept {others[0]!r} cannot be learned further together with others: choose another name, or let it be replaced"
        )
    began = known[task.name].get("task", "unknown")
    return Plan(task_digest(bank, backbone, data, task, method, began), bank.get(task.name), began)


def remarks_on_start(bank: Bank, task: Task, plan: Concept | Plan) -> list[str]:
    """Returns a line if a task replaces a concept whose words were contrasted and not learned further yet."""
    if isinstance(plan, Concept) or plan.start is not None or task.name not in bank.names:
        return []
    if bank.headers[task.name]["training"].get("method") != "contrast":
        return []
    return [f"<{task.name}> has contrasted words, which are replaced: set existing to continue to learn on from them"]


def earlier_names(bank: Bank, task: Task) -> list[str]:
    """Returns the names of the concepts that a task learns after: not those that are learned at the same time. Raises what ``Bank.before``
    does.
    """
    before = max((bank.before(name) for name in task.concepts), key=len)
    return [name for name in before if name not in task.concepts and name not in task.beside]


def task_digest(bank: Bank, backbone: Backbone | TransformerBackbone, data: Dataset, task: Task, method: Method, began: str = "") -> str:
    """Returns a hash of all that decides what a task learns: the settings that are not at their defaults, the base, the pictures, and the
    earlier concepts if the method depends on them; ``began`` is the digest of the task that it goes on from.
    """
    before = [bank.headers[n]["training"].get("task", n) for n in earlier_names(bank, task)] if method.continual else []
    how = [list(data.captions), list(data.repeats), data.side, data.fit, data.flip]
    chosen = counting_settings(task.config, method)
    words = [task.name, task.class_word, backbone.architecture, backbone.fingerprint, how, before, chosen]
    if task.others:
        words.append([*task.others.items()])
    if task.contrast and method.contrasts:
        words.append(task.contrast.digest)
    if began:
        words.append(began)
    if task.assistant is not None:
        words.append(
            tensors_digest({f"{n}.{side}": getattr(f, side) for n, f in task.assistant.factors.items() for side in ("up", "down")})
        )
    digest = hashlib.sha256(json.dumps(words).encode())
    prior = task.prior if task.config.prior else None
    for tensor in (*data.pictures, *data.masks, *(prior.pictures if prior else ())):
        if tensor is not None:
            digest.update(repr(tuple(tensor.shape)).encode() + tensor.mul(255).round().to("cpu").byte().numpy().tobytes())
    return digest.hexdigest()[:16]


def imagine_prior(backbone: Backbone | TransformerBackbone, data: Dataset, task: Task, on_picture: Callable[[int, int], None]) -> Dataset:
    """Has the base paint pictures of the plain class, of the size of the first picture."""
    height, width = data.draw(0, False, Random(0), backbone.family.cell)[0].shape[1:]
    size = backbone.family.whole_cells(height, width)
    return imagine(backbone, task.plain, task.config.prior_pictures, size, task.config.seed, on_picture)


@contextmanager
def keep_on_error(trainer: Trainer, file: Path, digest: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Leave the state of the last whole step in ``file`` if anything raises while this is open, wherever in a step. After a bad loss the
    one before stays, since the next step would be as bad.
    """
    try:
        yield
    except FloatingPointError:
        raise
    except BaseException:
        tell(keep_state(trainer, file, digest))
        raise


def keep_state(trainer: Trainer, file: Path, digest: str) -> str:
    """Writes the state of the last whole step, and returns where the run goes on. Signals that come meanwhile are too late."""
    where = f"stopped at step {trainer.step} of {trainer.config.steps}"
    if not trainer.step:
        return f"{where}: there is nothing to go on from yet"
    try:
        with hold_signals():
            if not trainer.whole:
                raise ValueError("it was cut in two")
            save_run(trainer, file, digest)
    except Exception as error:  # what ended the run is said too, whatever this is
        before = f": the same again goes on from the state before, in {file}" if file.exists() else ""
        return f"{where}, whose state could not be kept ({error}){before}"
    return f"{where}: run it again to go on from there (its state is in {file})"


def run_to_end(trainer: Trainer, file: Path, digest: str, on_step: Callable[[Trainer], None]) -> None:
    """Takes the steps that are left; the state of the run stays in ``file`` from time to time, when several processes have the same."""
    trainer.check_same()
    with trainer.attach():
        if not trainer.done:
            trainer.read_texts()
        while not trainer.done:
            trainer.advance()
            if trainer.step % SAVE_EVERY == 0 and not trainer.done:
                trainer.check_same()
                save_run(trainer, file, digest)
            on_step(trainer)
        trainer.method.finish(trainer)
    trainer.check_same()


def store(bank: Bank, trainer: Trainer, plan: Plan) -> tuple[Bank, Concept]:
    """Writes what was learned into the bank; of several processes the first does, and the others wait for it."""
    concepts = concepts_of(trainer, plan)
    if trainer.task.processes.first:
        bank = bank.add(*concepts)
    trainer.task.processes.wait()
    return bank, concepts[0]


def concepts_of(trainer: Trainer, plan: Plan) -> list[Concept]:
    """Returns what was learned with the digest that tells the same task again, which concepts were learned at the same time and, of several
    concepts, which share their factors.
    """
    record: dict[str, Any] = {"task": plan.digest, "losses": [round(loss, 5) for loss in trainer.losses]}
    if plan.began:
        record["began"] = plan.began
    if trainer.task.others:
        record |= {"shared_factors": plan.digest, "together": list(trainer.task.concepts)}
    if trainer.task.beside:
        record["beside"] = list(trainer.task.beside)
    return [replace(concept, training={**concept.training, **record}) for concept in trainer.concepts()]


def of_kind(bank: Bank, task: Task) -> list[Concept]:
    """Returns the learned concepts of a task that are said to act in another way than its settings have it, with that said anew; what was
    learned stays.
    """
    concepts, kind = [bank.get(name) for name in task.concepts], task.config.kind
    return [replace(c, training={**c.training, "kind": kind}) for c in concepts if c.kind not in ("", kind)]
