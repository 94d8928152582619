"""Painting with concepts: the text of a prompt, and the model for it."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.measure.pictures import heat_map, to_image
from ..cidm_ops.method.aggregation import table
from ..cidm_ops.models.family import Family
from ..cidm_ops.painting.compose import AggregationConfig, ConceptMix, mix, read
from ..cidm_ops.painting.config import MODES
from . import host, patches, say
from .aggregation import AggregationSettings
from .bank import BANK
from .schema import schema, validate

PROMPT = "a <dog> and a <cat> on the beach"
HANDLES = "Write a concept as <name>, or as <name:0.8> for less of it; everything else is ordinary text"
BATCH = "a <dog> on the beach\na <cat> in the snow"

MODEL = io.Model.Input("model", tooltip="The model that the concepts were learned on. It stays as it is: a patched copy comes out.")
CLIP = io.Clip.Input("clip", tooltip="Its text encoder.")
MODE = io.Combo.Input(
    "mode",
    options=list(MODES),
    default="exact",
    tooltip="exact: the concepts named in the prompt, fully. released: weights by likeness of words, as in the authors' code. paper: "
    "weights by the paper's equation 3. soft: by likeness too, each concept on its own; see Aggregation Settings.",
)
STRENGTH = io.Float.Input(
    "strength", default=1.0, min=0.0, max=2.0, step=0.01, tooltip="How strongly the concepts act; 0 leaves the model plain."
)
SETTINGS = AggregationSettings.Input("settings", optional=True, tooltip="How mode soft weighs, and where concepts act.")


class CIDMEncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMEncodePrompt",
            display_name="Encode Prompt with Concepts",
            aliases="clip text encode, prompt, text encode, trigger word, embedding, textual inversion, lora prompt, conditioning",
            category="CIDM",
            description="Encodes a prompt in which learned concepts stand as <name>. Every cross-attention layer of the model gets its "
            "own version of their words; use it with a model from Apply Concepts.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model that the concepts were learned on."),
                BANK,
                io.String.Input("text", default=PROMPT, multiline=True, tooltip=f"{HANDLES}, with weights such as (word:1.2) if you like."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="The text for a sampler, the layer-wise words in it."),
                io.String.Output(display_name="text", tooltip="The prompt as it was written, for Apply Concepts."),
            ],
        )

    @classmethod
    def execute(cls, clip, bank: Bank, text: str) -> io.NodeOutput:
        return io.NodeOutput(patches.encode_prompt(clip, read(bank, text)), text)


class CIDMAggregate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMAggregate",
            display_name="Apply Concepts",
            aliases="aggregate concepts, apply lora, load lora, lora stack, multi lora, multiple loras, lora loader, merge loras",
            category="CIDM",
            description="Merges the concepts of a prompt into the model, layer by layer: as fast as the plain model, with any sampler. "
            "The model also reads the layer-wise words of Encode Prompt with Concepts.",
            inputs=[
                MODEL,
                CLIP,
                BANK,
                io.String.Input("text", default=PROMPT, multiline=True, tooltip="The same prompt as in Encode Prompt with Concepts."),
                MODE,
                STRENGTH,
                SETTINGS,
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the concepts in it, for a sampler."),
                io.String.Output(display_name="weights", tooltip="The weight of every concept in every cross-attention layer, as a table."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="The text encoder with what LoRAs changed in it, for prompts that other nodes encode; Encode Prompt with "
                    "Concepts needs it not, but may have it.",
                ),
                io.Image.Output(display_name="picture", tooltip="The weights as a heat map: layers by concepts."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, clip, bank: Bank, text: str, mode: str, strength: float, settings: AggregationConfig | None = None
    ) -> io.NodeOutput:
        backbone, how = host.base_of(model, clip), read_aggregation(settings, mode, strength)
        mixture = mix(backbone, bank, text, how)
        layers = list(backbone.cross_attention)
        shown = table(mixture.weights, mixture.concepts, layers) if mixture.concepts else "no concept in the prompt"
        patched = patches.with_concepts(backbone, [mixture], how)
        encoder = patches.patched_clip(clip, mixture.concepts, mixture.strengths)
        picture = picture_of(mixture, layers, backbone.family)
        return say.output(cls, patched, shown, encoder, picture, text=describe(mixture), warnings=mixture.warnings)


class CIDMAggregateBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMAggregateBatch",
            display_name="Apply Concepts to a Batch",
            aliases="batch prompts, multiple prompts, prompt list, lora per image, multi lora, xy plot",
            category="CIDM/painting",
            description="One prompt for each picture of a batch, each with its own concepts, in one run of the sampler. Set the batch size "
            "of the latent to the number of lines.",
            inputs=[
                MODEL,
                CLIP,
                BANK,
                io.String.Input("texts", default=BATCH, multiline=True, tooltip=f"One prompt a line, one line a picture. {HANDLES}."),
                MODE,
                STRENGTH,
                SETTINGS,
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for a sampler."),
                io.Conditioning.Output(display_name="conditioning", tooltip="The texts, one for each picture of the batch."),
                io.Int.Output(display_name="count", tooltip="How many prompts there are, for the batch size of the latent."),
                io.String.Output(display_name="weights", tooltip="The weights of each prompt, as a table."),
                io.Image.Output(display_name="pictures", tooltip="The weights of each prompt as a heat map, one after another."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, texts: str | None = None) -> bool | str:
        return validate(prompts_of, texts)

    @classmethod
    def execute(
        cls, model, clip, bank: Bank, texts: str, mode: str, strength: float, settings: AggregationConfig | None = None
    ) -> io.NodeOutput:
        prompts = prompts_of(texts)
        backbone, how = host.ComfyBackbone(model, clip), read_aggregation(settings, mode, strength)
        mixtures = [mix(backbone, bank, prompt, how) for prompt in prompts]
        layers = list(backbone.cross_attention)
        tables = [table(m.weights, m.concepts, layers) if m.concepts else "no concept in the prompt" for m in mixtures]
        shown = "\n\n".join(f"{prompt}\n{weights}" for prompt, weights in zip(prompts, tables, strict=True))
        warnings = list(dict.fromkeys(w for m in mixtures for w in m.warnings))
        patched = patches.with_concepts(backbone, mixtures, how)
        pictures = stack_images([picture_of(m, layers, backbone.family) for m in mixtures])
        text = "\n".join(f"{prompt}: {describe(mixed)}" for prompt, mixed in zip(prompts, mixtures, strict=True))
        return say.output(cls, patched, patches.conditioning(clip, mixtures), len(prompts), shown, pictures, text=text, warnings=warnings)


def prompts_of(texts: str) -> list[str]:
    """Split the prompts of a batch. Raises ``ValueError`` if there is none."""
    if not (prompts := [line.strip() for line in texts.splitlines() if line.strip()]):
        raise ValueError("there is no prompt: write one a line")
    return prompts


def read_aggregation(settings: AggregationConfig | None, mode: str, strength: float) -> AggregationConfig:
    """Read what the inputs of a node say about the aggregation."""
    return replace(settings or AggregationConfig(), mode=mode, strength=strength)


def describe(mixed: ConceptMix) -> str:
    """Say the concepts of a prompt and their mean weights in words."""
    weights = mixed.weights.mean(0).tolist() if mixed.concepts else []
    parts = [f"<{c.name}> {w:.2f}" for c, w in zip(mixed.concepts, weights, strict=True) if w]
    parts += [f"<{name}> at its class word" for name in mixed.residuals]
    return ", ".join(parts) or "no concept in the prompt"


def picture_of(mixture: ConceptMix, layers: list[str], family: Family) -> torch.Tensor:
    """The weights of a prompt as an IMAGE ``[1, H, W, 3]``."""
    names = [c.name for c in mixture.concepts]
    note = "" if names else "No concept in the prompt."
    return to_image(heat_map(mixture.weights, [family.short(name) for name in layers], names, mixture.text, note))


def stack_images(pictures: list[torch.Tensor]) -> torch.Tensor:
    """Put pictures of different sizes into one IMAGE, white where one is smaller."""
    height, width = (max(p.shape[d] for p in pictures) for d in (1, 2))
    whole = torch.ones(len(pictures), height, width, 3)
    for canvas, picture in zip(whole, pictures, strict=True):
        canvas[: picture.shape[1], : picture.shape[2]] = picture[0]
    return whole


PAINT_NODES = [CIDMEncodePrompt, CIDMAggregate, CIDMAggregateBatch]
