"""One task of a sequence: learn a concept into a bank, or find that the bank has learned just that already."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace

from ..backbone import Backbone
from ..bank.bank import Bank, check_base
from ..bank.concept import Concept, check_name
from ..tokens import concept_words
from .data import ConceptImages
from .training import Recipe, learn


def learn_into(
    bank: Bank,
    backbone: Backbone,
    data: ConceptImages,
    *,
    name: str,
    class_word: str,
    recipe: Recipe,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> tuple[Bank, Concept, list[float]]:
    """Learn a concept after those before it in the bank, and write it there.

    The same name again replaces the concept in its place. The same task again (base, pictures, captions, recipe and
    earlier concepts alike) learns nothing: the concept comes from the bank. Returns the bank reopened, the concept and
    its losses. Raises ``ValueError`` before learning if the name is no name, the class word is empty, the bank is for
    another architecture or has a damaged file; the bank changes only when all is done.
    """
    check_name(name)
    if not class_word.strip():
        raise ValueError("the class word is empty: say what kind of thing it is, such as dog or teddy bear")
    earlier = bank.before(name)
    data.warnings.extend(w for n in bank.names if (w := check_base(bank.headers[n], backbone.architecture, backbone.fingerprint)))
    task = task_digest(bank, backbone, data, name, class_word, earlier, recipe)
    if name in bank.names and bank.headers[name]["training"].get("task") == task:
        concept = bank.get(name)
        return bank, concept, list(concept.training["losses"])
    concept, losses = learn(
        backbone,
        data,
        name=name,
        class_word=class_word,
        words=concept_words(name, class_word),
        earlier=[bank.get(n) for n in earlier],
        recipe=recipe,
        on_step=on_step,
    )
    concept = replace(concept, training={**concept.training, "task": task, "losses": [round(loss, 5) for loss in losses]})
    return bank.add(concept), concept, losses


def task_digest(bank: Bank, backbone: Backbone, data: ConceptImages, name: str, class_word: str, earlier: list[str], recipe: Recipe) -> str:
    """A hash of all that decides what a task learns."""
    before = [bank.headers[n]["training"].get("task", n) for n in earlier]
    words = [name, class_word, backbone.architecture, backbone.fingerprint, data.captions, before, asdict(recipe)]
    digest = hashlib.sha256(json.dumps(words).encode())
    for tensor in (data.pictures, data.masks):
        if tensor is not None:
            digest.update(tensor.mul(127.5).round().to("cpu").short().numpy().tobytes())
    return digest.hexdigest()[:16]
