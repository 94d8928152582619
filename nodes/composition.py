"""Several prompts in one picture, each in its place: a patched model for any sampler, or a guider for the custom one."""

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.method.blending import OVERLAPS
from ..cidm_ops.painting.compose import AggregationConfig, read
from ..cidm_ops.painting.composition import Composition, compose_regions
from ..cidm_ops.painting.config import PRESETS, NoiseEstimation
from . import host, patches, say
from .bank import BANK
from .paint import CLIP, HANDLES, LATE, MODE, MODEL, SETTINGS, STRENGTH, describe, read_aggregation
from .regions import ONE, RegionList
from .schema import schema, validate

RegionNoise = io.Custom("CIDM_REGION_NOISE")
WHOLE = "a dog on the left and a cat on the right in the snow"
DEFAULT = NoiseEstimation()
INPUTS = [
    MODEL,
    CLIP,
    BANK,
    RegionList.Input("regions", tooltip="From Draw Regions, Concept Region or Region Grid."),
    io.String.Input(
        "text",
        default=WHOLE,
        multiline=True,
        tooltip=f"The global prompt: what no region covers, and the scene as a whole. {HANDLES}.",
    ),
    io.Combo.Input(
        "preset",
        options=list(PRESETS),
        default="fast",
        tooltip="fast: every region its own text and concepts in one pass, as fast as one prompt. paper: a pass for each region too, in "
        "every step. auto: as fast, with passes in the first steps, where the picture is laid out.",
    ),
    MODE,
    STRENGTH,
    SETTINGS,
    RegionNoise.Input("noise", optional=True, tooltip="From Region Noise Estimation, instead of a preset."),
]
WEIGHTS = io.String.Output(display_name="weights", tooltip="Which concepts act where, in words.")


class CIDMPaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMPaint",
            display_name="Paint with Concepts",
            aliases="apply lora, load lora, lora stack, multi lora, prompt, clip text encode, character, style, regional prompt, attention "
            "couple, several characters",
            category="CIDM",
            description="All that a sampler needs to paint a prompt with the concepts of a bank, each as <name>, and with regions each in "
            "its place.",
            inputs=[
                MODEL,
                CLIP,
                BANK,
                io.String.Input("prompt", default=ONE, multiline=True, tooltip=f"What to paint. {HANDLES}."),
                io.String.Input("negative", default="", multiline=True, tooltip="What the picture should not have."),
                MODE,
                STRENGTH,
                RegionList.Input(
                    "regions", optional=True, tooltip="From Draw Regions, Concept Region or Region Grid: more prompts, each in its place."
                ),
                SETTINGS,
                RegionNoise.Input("noise", optional=True, tooltip="From Region Noise Estimation: more passes for regions."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the concepts in it, for a sampler."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt, for the same sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt, for the same sampler."),
                WEIGHTS,
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, clip, bank: Bank, prompt: str, negative: str, mode: str, strength: float, regions=(),
        settings: AggregationConfig | None = None, noise: NoiseEstimation | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        backbone = host.base_of(model, clip)
        composition = compose_regions(backbone, bank, prompt, regions, read_aggregation(settings, mode, strength))
        patched, positive = patches.in_regions(backbone, composition, noise or PRESETS["fast"])
        words = describe_scene(composition)
        unwanted = patches.encode_negative(clip, read(bank, negative), composition)
        return say.output(cls, patched, positive, unwanted, words, text=words, warnings=composition.warnings)


class CIDMPaintRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMPaintRegions",
            display_name="Paint in Regions",
            aliases="regional prompt, attention couple, regional lora, multi character, several characters, multiple "
            "characters, lora mask, area composition, bleeding",
            category="CIDM/regions",
            description="Several prompts in one picture, each in its place with its own concepts, with any sampler.",
            inputs=INPUTS,
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, for a sampler."),
                io.Conditioning.Output(display_name="conditioning", tooltip="The global prompt, for the same sampler."),
                WEIGHTS,
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        model, conditioning, words, warnings = compose_scene(**inputs)
        return say.output(cls, model, conditioning, words, text=words, warnings=warnings)


class CIDMRegionGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMRegionGuider",
            display_name="Region Guider",
            aliases="regional prompt, attention couple, guider, custom sampler, cfg guider, regional lora, multi character",
            category="CIDM/regions",
            description="Paint in Regions as a guider, for SamplerCustomAdvanced: the same picture as a KSampler paints with it.",
            inputs=[
                *INPUTS[:5],
                io.Conditioning.Input("negative", tooltip="What the whole picture should not have."),
                io.Float.Input("cfg", default=3.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip="Guidance."),
                *INPUTS[5:],
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced."), WEIGHTS],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, negative, cfg: float, **inputs: Any) -> io.NodeOutput:
        model, conditioning, words, warnings = compose_scene(**inputs)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(conditioning, negative)
        guider.set_cfg(cfg)
        return say.output(cls, guider, words, text=words, warnings=warnings)


class CIDMRegionNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def part(name: str, default: float, tooltip: str) -> io.Float.Input:
            return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)

        return schema(
            node_id="CIDMRegionNoise",
            display_name="Region Noise Estimation",
            aliases="noise estimation, regional sampler, latent couple, multidiffusion, noise blending, bootstrapping",
            category="CIDM/regions",
            description="Passes of the model for each single region, blended into the global prediction (the paper's equation 5). "
            "Each costs half a step.",
            inputs=[
                part("alpha", DEFAULT.alpha, "How much of the global prediction stays inside regions; 1 makes no passes."),
                part("start_percent", DEFAULT.start, "Passes begin here, as a part of the sampling."),
                part("end_percent", DEFAULT.end, "Passes end here, as a part of the sampling."),
                io.Combo.Input(
                    "overlap",
                    options=list(OVERLAPS),
                    default=DEFAULT.overlap,
                    tooltip="Where regions overlap: their mean, or the highest priority.",
                ),
                io.Float.Input(
                    "feather",
                    default=DEFAULT.feather,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="Edges in the blend, as a part of the shorter side.",
                ),
                part("bootstrap_percent", DEFAULT.bootstrap, "Until here, a region's pass sees plain background around its region."),
                io.Boolean.Input(
                    "features",
                    default=DEFAULT.features,
                    tooltip="The global pass has the regions' texts and concepts too, as in preset fast.",
                ),
            ],
            outputs=[RegionNoise.Output(display_name="noise", tooltip="For Paint in Regions or Region Guider.")],
        )

    @classmethod
    def validate_inputs(cls, start_percent: float | None = None, end_percent: float | None = None) -> bool | str:
        return validate(check_order, start_percent, end_percent)

    @classmethod
    def execute(cls, alpha, start_percent, end_percent, overlap, feather, bootstrap_percent, features) -> io.NodeOutput:
        check_order(start_percent, end_percent)
        return io.NodeOutput(NoiseEstimation(alpha, start_percent, end_percent, overlap, feather, bootstrap_percent, features))


def check_order(start: float, end: float) -> None:
    """Raises ``ValueError`` if passes would end before they begin."""
    if start > end:
        raise ValueError(f"start_percent {start:g} is after end_percent {end:g}: there would be no passes; swap them")


def compose_scene(
    model,
    clip,
    bank: Bank,
    regions,
    text: str,
    preset: str,
    mode: str,
    strength: float,
    settings: AggregationConfig | None = None,
    noise=None,
) -> tuple[Any, list, str, list[str]]:
    """Return the model that paints regions, the global CONDITIONING, which concepts act where in words, and warnings."""
    backbone = host.base_of(model, clip)
    composition = compose_regions(backbone, bank, text, regions, read_aggregation(settings, mode, strength))
    patched, conditioning = patches.in_regions(backbone, composition, noise or PRESETS[preset])
    alone = [] if regions else ["there are no regions: the whole picture follows the global prompt"]
    return patched, conditioning, describe_scene(composition), [*composition.warnings, *alone]


def describe_scene(composition: Composition) -> str:
    """Say which concepts act where, a line for each region."""
    whole = describe(composition.whole)
    parts = [f"region {u}: {describe(region.mix)}" for u, region in enumerate(composition.regions, 1)]
    late = [LATE.format(composition.how.start)] if composition.how.start else []
    return "\n".join([f"elsewhere: {whole}" if parts else whole, *parts, *late])


COMPOSITION_NODES = [CIDMPaint, CIDMPaintRegions, CIDMRegionGuider, CIDMRegionNoise]
