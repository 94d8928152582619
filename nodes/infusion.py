"""Infusion: learning a residual at the class word, and painting with it in a second stream."""

from typing import Any

from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.models.sd import EXAMPLE
from ..cidm_ops.painting.compose import AggregationConfig, compose, residual_masks
from ..cidm_ops.painting.config import STREAMS, ResidualConfig
from ..cidm_ops.row_plan import TokenResidual
from ..cidm_ops.training.methods import configure
from . import host, patches, say
from .bank import BANK, ConceptBank
from .data import ConceptDataset
from .paint import CLIP, HANDLES, MODEL
from .regions import RegionList
from .schema import schema, validate
from .settings import TrainingSettings
from .train import (
    advanced,
    backbone_of,
    base_inputs,
    check_words,
    configure_node,
    count,
    dataset_of,
    learn,
    mean_loss,
    rate,
    run_outputs,
    task_of,
)

DEFAULTS = configure("infusion").settings()
SHARED = ("weight_decay", "noise_offset", "min_snr", "dropout", "shuffle", "templates", "checkpointing", "precision", "memory")
STREAM = "dual: the attention maps of the plain model beside it, as in the paper. single: its own, in half the time. "
LAYERS = f"all, decoder, or a regular expression on names such as {EXAMPLE}."


class CIDMTrainInfusion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMTrainInfusion",
            display_name="Train with Infusion",
            aliases="train residual, dreambooth, textual inversion, no overfitting, finetune, learn, teach, character, face",
            category="CIDM/infusion",
            description="Learns one vector per cross-attention layer, added to the value of the class word: some 12 thousand numbers for "
            "Stable Diffusion 1.5. The model, its words and what it knows stay exactly as they are. Give masks: only what they cover is "
            "learned. Cancel keeps the run, which goes on when queued again.",
            inputs=[
                *base_inputs(),
                ConceptBank.Input("bank", tooltip="The bank that the concept goes into."),
                io.MultiType.Input(
                    "images",
                    [io.Image, ConceptDataset],
                    tooltip="A few pictures of the concept, or a concept dataset, which brings its own captions and masks.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    force_input=True,
                    optional=True,
                    tooltip="One caption per line with the class word in it. As in the paper without any: the class word stands alone.",
                ),
                io.Mask.Input(
                    "masks", optional=True, tooltip="Where the concept is in each picture, soft or hard: the error outside does not count."
                ),
                io.String.Input("name", default="dog", tooltip="The concept's own name. In prompts <name> stands for the class word."),
                io.String.Input(
                    "class_word", default="dog", tooltip="A word that the model draws something like the concept for: dog, teddy bear."
                ),
                count("steps", 100000, "How many training steps. Too many, and the surroundings in the pictures come along."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**32 - 1, control_after_generate=False, tooltip="The same seed learns the same concept."
                ),
                io.Float.Input(
                    "anchor",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Our addition, not in the paper: outside of the masks the picture stays the plain model's. 1 is usual, 0 off.",
                ),
                advanced(count("batch_size", 64, "Pictures that are noised together.")),
                advanced(count("accumulate", 64, "Batches per step; their gradients are averaged.")),
                rate("learning_rate", "Learning rate of the vectors; it stays the same."),
                advanced(io.String.Input("layers", default=DEFAULTS["targets"], tooltip=f"Which layers learn: {LAYERS}")),
                advanced(
                    io.Combo.Input(
                        "stream",
                        options=list(STREAMS),
                        default=STREAMS[0],
                        tooltip=f"{STREAM}released_code: what the authors' code does: its own maps, and vectors for the keys too.",
                    )
                ),
                TrainingSettings.Input(
                    "settings", optional=True, tooltip="From Training Settings: those about captions, memory, previews and the optimiser."
                ),
            ],
            outputs=[
                ConceptBank.Output(display_name="bank", tooltip="The bank with the concept in it."),
                *run_outputs(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None, class_word: str | None = None) -> bool | str:
        return validate(check_words, name, class_word)

    @classmethod
    def execute(
        cls, model, clip, vae, bank: Bank, images, name: str, class_word: str, steps: int, seed: int, anchor: float, batch_size: int,
        accumulate: int, learning_rate: float, layers: str, stream: str, captions: str = "", masks=None,
        settings: dict[str, Any] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        given, backbone = settings or {}, backbone_of(model, clip, vae, transformers=False)
        open_inputs = {"steps": steps, "batch": batch_size, "accumulate": accumulate, "lr": learning_rate}
        chosen = dict(seed=seed, anchor=anchor, targets=layers.strip(), stream=stream)
        shared = {name: given[name] for name in SHARED if name in given}
        config, took = configure_node(backbone.family, "infusion", open_inputs, chosen, shared)
        task = task_of(name, class_word, config, given)
        ((bank, concept, losses, warnings),) = learn(cls, backbone, bank, dataset_of(images, captions, masks), task, given)
        size = bank.file(concept.name).stat().st_size
        size_in_words = f"{sum(r.numel() for r in concept.residuals.values())} numbers, {size / 1024:.1f} KiB"
        text = f"<{concept.name}> learned, {size_in_words}, loss {mean_loss(losses)}{took}"
        return say.output(cls, bank, {"loss": losses}, len(losses), text=text, warnings=warnings)


class CIDMInfusion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMInfusion",
            display_name="Apply Infusion",
            aliases="apply residual, attention patch, dual stream, no overfitting",
            category="CIDM/infusion",
            description="Paints a prompt with concepts of Train with Infusion: each <name> stands for its class word, with the concept "
            "at it. Where things are, the attention maps, comes from the plain model that paints beside it, so a step takes half as long "
            "again. Concepts of Train Concept may be in the same prompt.",
            inputs=[
                MODEL,
                CLIP,
                BANK,
                io.String.Input("text", default="a <dog> on the beach", multiline=True, tooltip=f"{HANDLES}."),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.01, tooltip="Of all concepts; 0 leaves the model plain."),
                io.Combo.Input(
                    "stream",
                    options=list(STREAMS),
                    default=STREAMS[0],
                    tooltip=f"{STREAM}released_code: as single, with the vectors of the keys that were learned so.",
                ),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="From which part of the sampling on."),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Up to which part of the sampling."),
                io.String.Input("layers", default="all", tooltip=f"Where the vectors act: {LAYERS}"),
                RegionList.Input(
                    "regions",
                    optional=True,
                    tooltip="From Concept Region: one that stands in a region's text acts in that region only. It stands in the text above "
                    "too; the region's other words are not read.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for a sampler; also for the negative and for other prompts."),
                io.Conditioning.Output(display_name="conditioning", tooltip="The prompt with its concepts, for the same sampler."),
                io.String.Output(display_name="report", tooltip="Which concept stands at which tokens."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, bank: Bank, text, strength, stream, start, end, layers, regions=()) -> io.NodeOutput:
        infusion, how = ResidualConfig(stream, layers.strip(), start, end), AggregationConfig(strength=strength)
        backbone = host.ComfyBackbone(model, clip)
        mixture = compose(backbone, bank, text, how, layers=infusion.layers, masks=residual_masks(bank, regions))
        patched, encoded = patches.with_infusion(backbone, mixture, infusion, how)
        lines = [f"{' '.join(mixture.text.split())}", *map(describe, mixture.residuals.values())]
        shown = "\n".join(lines if mixture.residuals else [*lines, "no Infusion concept acts"])
        return say.output(cls, patched, encoded, shown, text=shown, warnings=mixture.warnings)


def describe(residual: TokenResidual) -> str:
    """Say where a residual acts, in words."""
    tokens = ", ".join(str(int(i)) for i in residual.marks.nonzero()[:, 0])
    where = "" if residual.mask is None else f", in {100 * float(residual.mask.mean()):.0f} % of the picture"
    return f"{len(residual.residuals)} layers at token {tokens}{where}"


INFUSION_NODES = [CIDMTrainInfusion, CIDMInfusion]
