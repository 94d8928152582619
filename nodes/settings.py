"""What can be set about training beyond the inputs of Train Concept."""

from typing import Any

from comfy_api.latest import io

from ..cidm_ops.method.consolidation import MODES
from ..cidm_ops.models.sd import EXAMPLE
from ..cidm_ops.training.config import EXISTING, MEMORY, PRECISIONS
from ..cidm_ops.training.methods import configure
from ..cidm_ops.training.methods.cidm import GROUPS, REACHES
from ..cidm_ops.training.methods.nearest import STARTS
from .data import ConceptDataset
from .schema import schema

TrainingSettings = io.Custom("CIDM_SETTINGS")
ContrastBy = io.Custom("CIDM_CONTRAST")
DEFAULTS = configure("cidm").settings()


def amount(name: str, high: float, step: float, tooltip: str, optional: bool = False) -> io.Float.Input:
    """A number from 0 with the default of *Train Concept*. What came later is optional, so that older workflows stay valid."""
    return io.Float.Input(name, default=DEFAULTS[name], min=0.0, max=high, step=step, optional=optional, tooltip=tooltip)


class CIDMTrainingSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMTrainingSettings",
            display_name="Training Settings",
            aliases="lora training settings, advanced training, optimizer, learning rate, min snr, gradient checkpointing, "
            "regularization images, live preview",
            category="CIDM/training",
            description="Everything about training that has a good default, for Train Concept.",
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=DEFAULTS["mode"],
                    tooltip="How a new concept is kept apart from earlier ones. corrected: its subspace turns away from theirs. "
                    "orthogonal: it only reads directions that none of them reads. off: not at all. paper_literal and released_code: "
                    "for comparison.",
                ),
                io.String.Input(
                    "targets",
                    default=DEFAULTS["targets"],
                    tooltip="Which layers learn: cross_attention (the paper), attention, attention_ff, or a regular expression on names "
                    f"such as {EXAMPLE}.to_v.",
                ),
                io.Combo.Input(
                    "groups",
                    options=list(GROUPS),
                    default=DEFAULTS["groups"],
                    tooltip="Which layers share a version of the words: those of one block (in SD 1.5 each layer is one), none, or all.",
                ),
                amount("shared", 100.0, 0.01, "Weight of the low-rank shared subspace, the paper's second regulariser. 0: off."),
                io.Int.Input("accumulate", default=1, min=1, max=64, tooltip="Batches per step; their gradients are averaged."),
                amount("alpha", 1024.0, 0.5, "Scales the factors by alpha / rank while they learn. 0: as the rank."),
                amount("weight_decay", 1.0, 0.001, "Weight decay of AdamW."),
                amount("noise_offset", 1.0, 0.01, "A little noise per channel, for darker darks and brighter lights."),
                amount("min_snr", 100.0, 0.5, "Gamma of min-SNR weighting, 5 is usual. 0: off, as in the paper."),
                amount("dropout", 0.99, 0.01, "Share of pictures that are shown without their caption."),
                io.Boolean.Input("checkpointing", default=False, tooltip="Much less memory for about a third more time."),
                io.Boolean.Input("shuffle", default=False, tooltip="Shuffle the parts of captions between commas; the first stays."),
                io.String.Input(
                    "templates",
                    default="",
                    multiline=True,
                    tooltip="One template per line, {} for the caption. Empty: the set for things or styles.",
                ),
                io.Combo.Input(
                    "existing",
                    options=list(EXISTING),
                    default=EXISTING[0],
                    tooltip="What to do when the bank has a concept of that name that was learned in any other way: replace it, refuse to, "
                    "or continue learning from what it knows.",
                ),
                io.Int.Input("preview_every", default=0, min=0, max=100000, tooltip="Paint a picture every so many steps; 0 paints none."),
                io.String.Input("preview_prompt", default="a photo of <dog>", tooltip="What the previews show, always from the same seed."),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=DEFAULTS["precision"],
                    optional=True,
                    tooltip="What a model in fp32 computes in while learning; what learns is always fp32. auto: bf16 where the hardware "
                    "is made for it.",
                ),
                io.Combo.Input(
                    "memory",
                    options=list(MEMORY),
                    default=DEFAULTS["memory"],
                    optional=True,
                    tooltip="auto: when memory runs out, the step is done again with checkpointing, then one picture at a time, then in "
                    "bf16. as_set: training ends and says what to try.",
                ),
                amount("lr_text", 1.0, 1e-6, "Learning rate of factors in the text encoders' attention. 0: they stay as they are.", True),
                amount("attention", 100.0, 0.01, "Weight of keeping the words' attention on the masks; for pictures that have one.", True),
                amount(
                    "prior", 100.0, 0.1, "Weight of pictures of the plain class, which keep the class word what it was; 1 is usual.", True
                ),
                io.Int.Input(
                    "prior_pictures",
                    default=DEFAULTS["prior_pictures"],
                    min=1,
                    max=1000,
                    optional=True,
                    tooltip="How many such pictures the base paints before training, if none are connected.",
                ),
                ConceptDataset.Input(
                    "prior_dataset",
                    optional=True,
                    tooltip="Pictures of the plain class, captioned with the class word, instead of painted ones.",
                ),
                io.Combo.Input(
                    "reach",
                    options=list(REACHES),
                    default=DEFAULTS["reach"],
                    optional=True,
                    tooltip="Which words of a caption the concept changes while it learns; it paints with the same. words and end: its own "
                    "and the end of the text, so that other words mean what they mean to the base. by kind: all of them.",
                ),
                amount(
                    "dependence",
                    100.0,
                    0.05,
                    "Weight of keeping how strongly the concept and the rest of a caption depend on each other (ACCORD); 0.3 is a start. A "
                    "step takes about a quarter longer.",
                    True,
                ),
                io.Combo.Input(
                    "start",
                    options=list(STARTS),
                    default=DEFAULTS["start"],
                    optional=True,
                    tooltip="What the concept's words begin as. nearest: those of the concept of the same class in the bank with which the "
                    "model errs least on the new pictures.",
                ),
                ContrastBy.Input(
                    "contrast",
                    optional=True,
                    tooltip="From Contrast Words: the concept's words go on following its pictures while it is learned. Not for styles.",
                ),
                io.Float.Input(
                    "contrast_weight",
                    default=configure("clif").settings()["contrast_weight"],
                    min=0.0,
                    max=100.0,
                    step=0.001,
                    optional=True,
                    tooltip="Weight of that, where contrast is connected. 0: plain training.",
                ),
            ],
            outputs=[TrainingSettings.Output(display_name="settings", tooltip="For Train Concept.")],
        )

    @classmethod
    def execute(cls, templates: str, **settings: Any) -> io.NodeOutput:
        lines = tuple(line.strip() for line in templates.splitlines() if line.strip())
        return io.NodeOutput(settings | ({"templates": lines} if lines else {}))


SETTINGS_NODES = [CIDMTrainingSettings]
