"""One task of a sequence: learn a concept into a bank, go on where it was stopped, or find it learned already."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from random import Random

from ..backbone import Backbone
from ..bank.bank import Bank, check_base
from ..bank.concept import Concept, check_name
from ..tokens import concept_words
from .checkpoint import checkpoint_file, resume_run, save_run
from .dataset import Dataset
from .infusing import InfusionRun
from .prior import imagined
from .recipe import Recipe
from .training import Run

EXISTING = ("replace", "refuse", "continue")
SAVE_EVERY = 50  # steps


def learn_into(
    bank: Bank,
    backbone: Backbone,
    data: Dataset,
    *,
    name: str,
    class_word: str,
    recipe: Recipe,
    existing: str = "replace",
    prior: Dataset | None = None,
    kind: Callable[..., Run] | None = None,
    on_step: Callable[[Run], None] = lambda run: None,
    on_picture: Callable[[int, int], None] = lambda done, count: None,
) -> tuple[Bank, Concept, list[float]]:
    """Learn a concept after those before it in the bank, and write it there.

    The same task again (base, pictures, captions, recipe and earlier concepts alike) learns nothing if the bank has it, only its
    kind becomes the recipe's, and goes on from its last step if it was stopped. Anything else under a name that the bank has:
    ``existing`` says whether that concept is replaced in its place, the task is refused, or learning continues from what it knows.
    ``prior`` holds pictures of the plain class; without them the base paints some if the recipe has a weight for them.
    ``kind`` makes the run, for other methods than the recipe's.
    ``on_step`` is called after every step, ``on_picture`` while the base paints; both may raise to stop, and the state is kept
    first. Returns the bank reopened, the concept and its losses. Raises ``ValueError`` before learning if the name is no
    name, the class word is empty, the bank is for another architecture, has a damaged file or cannot be written to; the
    bank changes only when all is done.
    """
    check_name(name)
    if not class_word.strip():
        raise ValueError("the class word is empty: say what kind of thing it is, such as dog or teddy bear")
    if existing not in EXISTING:
        raise ValueError(f"existing {existing!r}: expected one of {', '.join(EXISTING)}")
    earlier = bank.before(name)
    data.warnings.extend(w for n in bank.names if (w := check_base(bank.headers[n], backbone.architecture, backbone.fingerprint)))
    known = bank.headers[name]["training"] if name in bank.names else {}

    def digest(began: str) -> str:
        return task_digest(bank, backbone, data, name, class_word, earlier, recipe, prior if recipe.prior else None, began)

    if known and known.get("task") == digest(known.get("began", "")):
        concept = bank.get(name)
        if concept.kind not in ("", recipe.kind):  # how it acts is said anew, what was learned stays
            concept = replace(concept, training={**concept.training, "kind": recipe.kind})
            bank = bank.add(concept)
        return bank, concept, list(concept.training["losses"])
    if known and existing == "refuse":
        raise ValueError(f"bank {bank.folder.name!r} has a concept {name!r} already: choose another name, or let it be replaced")
    bank.check_writable()
    start = bank.get(name) if known and existing == "continue" else None
    began = known.get("task", "unknown") if start else ""
    task = digest(began)
    if recipe.prior and prior is None:
        height, width = data.draw(0, False, Random(0), backbone.family.cell)[0].shape[1:]
        prior = imagined(backbone, class_word, recipe.prior_pictures, *backbone.family.whole_cells(height, width), recipe.seed, on_picture)
    infusion = recipe.method == "infusion"
    run = (kind or (InfusionRun if infusion else Run))(
        backbone,
        data,
        class_word=class_word,
        words=[f"<{name}>"] if infusion else concept_words(name, class_word),
        earlier=[] if infusion else [bank.get(n) for n in earlier if bank.headers[n]["method"] == "cidm"],
        recipe=recipe,
        prior=prior if recipe.prior else None,
        start=start,
    )
    file = checkpoint_file(bank, name)
    if reason := resume_run(run, file, task):
        data.warnings.append(reason)
    with run.attached():
        while not run.done:
            run.advance()
            if run.step % SAVE_EVERY == 0 and not run.done:
                save_run(run, file, task)
            try:
                on_step(run)
            except BaseException:
                save_run(run, file, task)
                raise
    concept = run.concept(name)
    record = {"task": task, "losses": [round(loss, 5) for loss in run.losses]} | ({"began": began} if began else {})
    concept = replace(concept, training={**concept.training, **record})
    bank = bank.add(concept)
    file.unlink(missing_ok=True)
    return bank, concept, run.losses


def task_digest(
    bank: Bank,
    backbone: Backbone,
    data: Dataset,
    name: str,
    class_word: str,
    earlier: list[str],
    recipe: Recipe,
    prior: Dataset | None = None,
    began: str = "",
) -> str:
    """A hash of all that decides what a task learns. Settings at their defaults do not count: one that is new changes no old task; nor
    does ``kind``, which follows the templates.
    """
    before = [] if recipe.method == "infusion" else [bank.headers[n]["training"].get("task", n) for n in earlier]
    how = [list(data.captions), list(data.repeats), data.size, data.fit, data.flip]
    chosen = {f.name: value for f in fields(recipe) if f.name != "kind" and (value := getattr(recipe, f.name)) != f.default}
    words = [name, class_word, backbone.architecture, backbone.fingerprint, how, before, chosen]
    if began:
        words.append(began)
    digest = hashlib.sha256(json.dumps(words).encode())
    for tensor in (*data.pictures, *data.masks, *(prior.pictures if prior else ())):
        if tensor is not None:
            digest.update(repr(tuple(tensor.shape)).encode() + tensor.mul(255).round().to("cpu").byte().numpy().tobytes())
    return digest.hexdigest()[:16]
