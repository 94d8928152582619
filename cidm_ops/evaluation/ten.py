"""Doodle's ten concepts, learned one after another into a bank: how those that ship were made."""

import logging

from PIL import Image

from ..backbone import Backbone
from ..bank.bank import Bank
from ..bank.manage import describe
from ..doodle.concepts import CONCEPTS, examples
from ..grammar import article
from ..training.method import Task
from ..training.methods import method_of
from ..training.task import learn_into
from .doodle import RECIPE, training_pictures

log = logging.getLogger("cidm.doodle")


def learn_ten(bank: Bank, backbone: Backbone) -> Bank:
    """Learn the concepts that the bank does not have yet, in their order, by the recipe of the benchmark, and say of each whose it is and
    show the first picture that it was learned from. Returns the bank reopened.
    """
    for concept in CONCEPTS.values():
        config = RECIPE.update(kind=concept.kind, templates=method_of(RECIPE).templates(concept.kind))
        task = Task(name=concept.name, class_word=concept.class_word, config=config)
        bank, _, losses, _ = learn_into(bank, backbone, training_pictures(concept), task)
        about = {"author": "CIDM", "license": "Apache-2.0", "description": f"{article(concept.class_word)} of the Doodle world"}
        bank = describe(bank, concept.name, about, Image.fromarray(examples(concept, 1)[0].picture))
        log.info("<%s>: loss %.4f", concept.name, sum(losses[-50:]) / len(losses[-50:]))
    return bank
