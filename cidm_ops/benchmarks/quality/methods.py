"""What is compared: how concepts are learned one after another, and what of all that was learned a prompt gets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...backbone import Backbone, TransformerBackbone
from ...bank.concept import Concept
from ...method.aggregation import spoken_as
from ...models.family import Family
from ...painting.compose import ConceptMix
from ...painting.config import BY_KIND, EVERYWHERE, MODES, PLACE, WORDS_AND_END
from ...painting.weights import weights
from ...training.config import TrainingConfig
from ...training.method import Method as LearningMethod
from ...training.methods import configure
from ...training.methods.baselines import DistilledLora, ElasticLora, SelfRegularizedLora, SequentialJointLora, SequentialLora
from ...training.methods.nearest import NEAREST
from .suite import Suite

# What the baselines' terms weigh, set by their size; docs/benchmark.md has what others do.
EWC_WEIGHT, LWF_WEIGHT, C_LORA_WEIGHT = 1e4, 1.0, 1.0


@dataclass(frozen=True)
class Training:
    """A way to learn: what it changes in the suite's settings, of ``things`` alone too, and the method, given the bank's folder, if it is
    not their own, ``joint`` that on transformers in which all layers read one text.
    """

    change: Mapping[str, object]
    method: Callable[[Path], LearningMethod] | None = None
    joint: Callable[[Path], LearningMethod] | None = None
    infusion: bool = False
    things: Mapping[str, object] = field(default_factory=dict)

    def config(self, suite: Suite, kind: str) -> TrainingConfig:
        config = (suite.infusion if self.infusion else suite.recipe).update(**self.change)
        return config.update(**self.things) if kind == "thing" else config

    @property
    def is_joint(self) -> bool:
        """Whether transformers in which all layers read one text can be trained so."""
        known = {*self.change, *self.things} <= configure("lora").settings().keys()
        return known and not self.infusion and (self.joint is not None or self.method is None)

    def method_on(self, family: Family, folder: Path) -> LearningMethod | None:
        """Returns what learns on a family, given the bank's folder; ``None`` stands for the method of the settings."""
        make = self.method if family.layerwise else self.joint
        return make(folder) if make else None

    @property
    def settings(self) -> dict[str, object]:
        """What it changes, for the record of a folder."""
        return dict(self.change) | ({"things": dict(self.things)} if self.things else {})


TRAININGS = {
    "apart": Training({"mode": "off"}),
    "finetune": Training({"mode": "off"}, lambda folder: SequentialLora(), lambda folder: SequentialJointLora()),
    "ewc": Training({"mode": "off", "consolidation": EWC_WEIGHT}, lambda folder: ElasticLora(folder / "fisher")),
    "lwf": Training({"mode": "off", "consolidation": LWF_WEIGHT}, lambda folder: DistilledLora()),
    "c_lora": Training({"mode": "off", "consolidation": C_LORA_WEIGHT}, lambda folder: SelfRegularizedLora()),
    "orthogonal": Training({"mode": "orthogonal"}),
    "released_code": Training({"mode": "released_code"}),
    "paper_literal": Training({"mode": "paper_literal"}),
    "corrected": Training({}),
    "shared": Training({"shared": 1.0}),
    "one_row": Training({"groups": "one"}),
    "words_and_end": Training({}, things={"reach": WORDS_AND_END}),
    "dependence": Training({"dependence": 0.3}),
    "obedient": Training({"dependence": 0.3}, things={"reach": WORDS_AND_END}),
    "nearest": Training({"start": NEAREST}),
    "infusion": Training({}, infusion=True),
}
MERGES = ("drawn", "plain", *MODES, "uniform", "sum", "last", "composite", "infusion")
JOINT_MERGES = ("drawn", "plain", "exact", "uniform", "sum", "last")  # on transformers in which all layers read one text


@dataclass(frozen=True)
class Method:
    """A row of the table: what it is called, which training it paints with, and how what was learned is put together.

    ``drawn``: no model, exact renderings of what the prompt asks for, where the suite has them. ``plain``: the base with the class word.
    ``exact`` and the soft modes: CIDM's aggregation. ``uniform``: the mean of all deltas, ``sum``: their sum, ``last``: the last task's
    alone. ``composite``: the mean of the predictions with each. ``strengths`` are those of the curve, ``reach`` says where in the
    prompt concepts act, or in the picture, and ``start`` from which part of the sampling on.
    """

    title: str
    training: str
    merge: str
    strengths: Sequence[float] = (0.4, 0.6, 0.8, 1.2)
    reach: str = EVERYWHERE
    start: float = 0.0

    @property
    def is_joint(self) -> bool:
        """Whether it can be painted and trained on transformers in which all layers read one text."""
        everywhere = self.reach in (EVERYWHERE, BY_KIND) and not self.start
        return everywhere and self.merge in JOINT_MERGES and TRAININGS[self.training].is_joint

    @property
    def as_a_user(self) -> bool:
        """Whether each prompt is painted on its own from the bank, as a user paints it, rather than many in a batch."""
        return self.merge == "infusion" or self.reach == PLACE or self.start > 0


METHODS = {
    "drawn": Method("What is asked for, drawn (ceiling)", "apart", "drawn", ()),
    "base": Method("Base model, class word (lower bound)", "apart", "plain", ()),
    "alone": Method("Each concept alone (upper bound)", "apart", "exact", reach=BY_KIND),
    "finetune": Method("Finetuning, one LoRA", "finetune", "last"),
    "ewc": Method("EWC, one LoRA", "ewc", "last"),
    "lwf": Method("LwF, one LoRA", "lwf", "last"),
    "lora_m": Method("LoRA-M, uniform merge", "apart", "uniform", (2.0, 4.0, 6.0, 10.0)),
    "lora_c": Method("LoRA-C, composite", "apart", "composite", ()),
    "c_lora": Method("C-LoRA", "c_lora", "sum"),
    "orthogonal_adaptation": Method("Orthogonal Adaptation, sum", "orthogonal", "sum"),
    "cidm_released": Method("CIDM, as its released code", "released_code", "released"),
    "cidm_paper": Method("CIDM, as printed", "paper_literal", "paper"),
    "cidm_soft": Method("CIDM corrected, soft routing", "corrected", "soft", reach=BY_KIND),
    "cidm": Method("CIDM corrected, exact routing (default)", "corrected", "exact", (0.2, 0.4, 0.6, 0.8, 1.2), BY_KIND),
    "infusion": Method("Infusion", "infusion", "infusion", ()),
}
ABLATIONS = {
    "alone_everywhere": Method("each concept alone, acting everywhere", "apart", "exact", ()),
    "cidm_everywhere": Method("corrected, exact routing, acting everywhere", "corrected", "exact", (0.2, 0.4, 0.6, 0.8, 1.2)),
    "cidm_words_and_end": Method("corrected, exact routing, acting at words and end", "corrected", "exact", (), WORDS_AND_END),
    "soft_everywhere": Method("corrected, soft routing, acting everywhere", "corrected", "soft", ()),
    "no_consolidation_soft": Method("without consolidation, soft routing", "apart", "soft", (), BY_KIND),
    "no_consolidation_released": Method("without consolidation, the code's routing", "apart", "released", ()),
    "no_consolidation_sum": Method("without consolidation, all at full weight", "apart", "sum", ()),
    "corrected_released": Method("corrected, the code's routing", "corrected", "released", ()),
    "corrected_paper": Method("corrected, the paper's routing", "corrected", "paper", ()),
    "corrected_uniform": Method("corrected, uniform weights", "corrected", "uniform", ()),
    "corrected_sum": Method("corrected, all at full weight", "corrected", "sum", ()),
    "released_code_exact": Method("the code's consolidation, exact routing", "released_code", "exact", (), BY_KIND),
    "paper_literal_exact": Method("the printed consolidation, exact routing", "paper_literal", "exact", (), BY_KIND),
    "orthogonal_exact": Method("frozen orthogonal downs, exact routing", "orthogonal", "exact", (), BY_KIND),
    "shared_exact": Method("with the shared term (R2), exact routing", "shared", "exact", (), BY_KIND),
    "learned_at_words_and_end": Method("things learned and painted at words and end, exact routing", "words_and_end", "exact", (), BY_KIND),
    "dependence_exact": Method("with the dependence term, exact routing", "dependence", "exact", (), BY_KIND),
    "obedient_exact": Method("things learned at words and end with the dependence term, exact routing", "obedient", "exact", (), BY_KIND),
    "nearest_exact": Method("words that begin as those of the nearest concept, exact routing", "nearest", "exact", (), BY_KIND),
    "late_start": Method("the base in plain words until 0.08 of the sampling", "corrected", "exact", (), BY_KIND, 0.08),
    "where_it_stands": Method("in the place where the concept stands, things", "corrected", "exact", (), PLACE),
    "one_row_exact": Method("one row per word for all layers, exact routing", "one_row", "exact", (), BY_KIND),
}


def mixture(
    merge: str, backbone: Backbone | TransformerBackbone, learned: Mapping[str, Concept], name: str, prompt: str, strength: float = 1.0
) -> ConceptMix:
    """Return what a prompt of concept ``name`` gets of those ``learned`` so far; ``<name>`` in it stands for what means the concept.

    Raises ``ValueError`` for a merge that is not one of one pass, and on transformers for one that compares what each layer reads.
    """
    concepts = [learned[name]] if merge == "exact" else list(learned.values())
    text, count = prompt.replace(f"<{name}>", spoken_as(learned[name])), len(concepts)
    ones = torch.ones(count)
    last = torch.zeros(count)
    last[-1] = 1.0
    each = {"exact": ones, "uniform": ones / count, "sum": ones, "composite": ones, "last": last}
    if merge in each:
        found = each[merge].expand(len(backbone.cross_attention), -1)
    elif merge in MODES and not isinstance(backbone, TransformerBackbone):
        found = weights(merge, backbone, text, concepts, {name: 1.0}).cpu()
    else:
        able = each if isinstance(backbone, TransformerBackbone) else MERGES
        raise ValueError(f"merge {merge!r}: expected one of {', '.join(able)}")
    return ConceptMix(text, concepts, {name: strength}, strength * found)
