"""A toy method in a dozen lines: textual inversion (Gal et al. 2022), one row for the concept's only word, the same in all layers."""

from dataclasses import dataclass

from torch import nn

from cidm_ops.tokens import Table
from cidm_ops.training.config import MethodConfig, check_least
from cidm_ops.training.method import Learner, Method
from cidm_ops.training.methods.cidm import noun_row


@dataclass(frozen=True, kw_only=True)
class InversionConfig(MethodConfig):
    lr: float = 5e-3

    def __post_init__(self):
        check_least(self, 0, ("lr",))


class InversionLearner(Learner):
    texts_learn = True

    def __init__(self, backbone, task, words):
        super().__init__(backbone, task, words)
        self.rows = nn.ParameterDict({e: nn.Parameter(noun_row(backbone, task.class_word, e).cpu()) for e in backbone.encoders})
        self.layers = (0,) * len(backbone.cross_attention)

    def tables(self):
        return {self.words[0]: Table({e: row[None] for e, row in self.rows.items()}, self.layers)}

    def concept_parts(self):
        rows = {e: row.detach().cpu()[None, None] for e, row in self.rows.items()}
        return {"words": self.words, "tokens": rows, "token_layers": self.layers}


class TextualInversion(Method):
    name, config, learner = "inversion", InversionConfig, InversionLearner

    def words(self, name, class_word):
        return [f"<{name}.1>"]
