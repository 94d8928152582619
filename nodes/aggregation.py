"""How concepts are weighed and how they act, beyond the inputs of Apply Concepts."""

from comfy_api.latest import io

from ..cidm_ops.method.aggregation import NORMS, POSITIONS, RULES, SIMILARITIES, Rule
from ..cidm_ops.painting.compose import AggregationConfig
from ..cidm_ops.painting.config import BY_KIND, PADDED, PLACE, REGION_OVERLAPS, REGION_TEXTS, SCOPES, SHARED
from .schema import schema

AggregationSettings = io.Custom("CIDM_AGGREGATION")
ALONE, TOGETHER = "each on its own", "all in one text"
MERGED, ROUTED = "merged", "routed"
DEFAULT = RULES["soft"]


class CIDMAggregationSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMAggregationSettings",
            display_name="Aggregation Settings",
            aliases="lora weights, block weights, merge settings, routing, mixture of loras, advanced",
            category="CIDM/painting",
            description="How mode soft turns the likeness of words into weights, and where concepts act, for Apply Concepts.",
            inputs=[
                io.Float.Input(
                    "power",
                    default=DEFAULT.power,
                    min=0.1,
                    max=64.0,
                    step=0.1,
                    tooltip="The likeness to this power: the higher, the less an unlike concept gets. Paper 2, released code 4.",
                ),
                io.Combo.Input(
                    "norm",
                    options=list(NORMS),
                    default=DEFAULT.norm,
                    tooltip="What the weights of a layer are divided by: their sum (l1, released code), their Euclidean norm (l2, paper), "
                    "the largest (max), nothing (none). With l1, two concepts get half each.",
                ),
                io.Combo.Input(
                    "similarity",
                    options=list(SIMILARITIES),
                    default=DEFAULT.similarity,
                    tooltip="Likeness of two words: cosine (released code), or the plain product (paper).",
                ),
                io.Combo.Input(
                    "positions",
                    options=list(POSITIONS),
                    default=DEFAULT.positions,
                    tooltip="Which positions of the prompt count: its words, or all, end and padding included (paper, released code).",
                ),
                io.Float.Input(
                    "threshold", default=DEFAULT.threshold, min=-1.0, max=1.0, step=0.01, tooltip="Less likeness than this counts as none."
                ),
                io.Float.Input(
                    "scale", default=DEFAULT.scale, min=0.0, max=2.0, step=0.01, tooltip="All weights times this. Released code 0.8."
                ),
                io.Combo.Input(
                    "encoding",
                    options=[ALONE, TOGETHER],
                    default=ALONE,
                    tooltip="Each concept's words are encoded on their own, so that neither order nor number matters, or all in one text, "
                    "as in the released code, which takes 75 words.",
                ),
                io.Boolean.Input(
                    "negative",
                    default=True,
                    tooltip="Concepts act on the negative half too, as a LoRA does. Off: on texts of Encode Prompt with Concepts only.",
                ),
                io.Combo.Input(
                    "path",
                    options=[MERGED, ROUTED],
                    default=MERGED,
                    tooltip="merged: into the weights, at no cost per step. routed: beside the layers, so quantised weights stay "
                    "as they are. Both give the same picture; with negative off it is always routed.",
                ),
                io.Combo.Input(
                    "reach",
                    options=[*SCOPES, PLACE],
                    default=BY_KIND,
                    optional=True,
                    tooltip="Which words of the prompt concepts change: all of them, as a LoRA does (everywhere); their own and the end "
                    "of the text, which sums it up (words and end); their own alone, with the base's queries (words). By kind: words for "
                    "what was learned as a style, everywhere for the rest. Where it stands: the place in the picture that looks at their "
                    "words; around it the base paints plain words. Other than everywhere is always routed.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Concepts act from this part of the sampling on; until then the base paints plain words. Try 0.08 where "
                    "other coloured things are in the prompt.",
                ),
                io.Float.Input(
                    "region_guidance",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    optional=True,
                    tooltip="Guidance inside regions, as a multiple of the sampler's cfg, which is to be above 1.",
                ),
                io.Combo.Input(
                    "overlap",
                    options=list(REGION_OVERLAPS),
                    default=SHARED,
                    optional=True,
                    tooltip="Where regions of one priority overlap: shared among them, or each place the one's that answers more strongly.",
                ),
                io.Float.Input(
                    "apart_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Flux, Flux.2 Klein, Chroma, Stable Diffusion 3.5, Anima, Krea 2, Lumina 2, Z-Image, Qwen-Image: until this "
                    "part of the sampling regions do not look at each "
                    "other, so that look-alikes stay two. Try 0.2; much more divides the picture.",
                ),
                io.Combo.Input(
                    "region_texts",
                    options=list(REGION_TEXTS),
                    default=PADDED,
                    optional=True,
                    tooltip="The same models: padded reads a region's text as they were trained, filled up to 256 tokens on Flux.1; "
                    "cut leaves out most of what fills it up, which is faster with many regions and changes the picture a little.",
                ),
            ],
            outputs=[AggregationSettings.Output(display_name="settings", tooltip="For Apply Concepts.")],
        )

    @classmethod
    def execute(
        cls, power, norm, similarity, positions, threshold, scale, encoding, negative, path, reach=BY_KIND, start_percent=0.0,
        region_guidance=1.0, overlap=SHARED, apart_percent=0.0, region_texts=PADDED,
    ) -> io.NodeOutput:  # fmt: skip
        rule = Rule(power, norm, similarity, positions, threshold, scale, joint=encoding == TOGETHER)
        more = {"start": start_percent, "inside": region_guidance, "overlap": overlap, "apart": apart_percent}
        return io.NodeOutput(AggregationConfig(rule, negative, path == ROUTED, reach, **more, padding=region_texts == PADDED))


AGGREGATION_NODES = [CIDMAggregationSettings]
