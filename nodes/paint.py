"""Painting with concepts: the text of a prompt, and the model for it."""

from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.method.aggregation import MODES, table
from ..cidm_ops.run.prompt import mix
from . import host, say
from .bank import ConceptBank

PROMPT = "a <dog> and a <cat> on the beach"
HANDLES = "Write a concept as <name>; everything else is ordinary text"


class CIDMEncodePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIDMEncodePrompt",
            display_name="Encode Prompt with Concepts",
            category="CIDM",
            description="Encodes a prompt in which learned concepts stand as <name>. Every cross-attention layer of the model gets its "
            "own version of their words; use it with a model from Aggregate Concepts.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model that the concepts were learned on."),
                ConceptBank.Input("bank", tooltip="The bank with the concepts."),
                io.String.Input("text", default=PROMPT, multiline=True, tooltip=f"{HANDLES}, with weights such as (word:1.2) if you like."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="The text for a sampler, the layer-wise words in it."),
                io.String.Output(display_name="text", tooltip="The prompt as it was written, for Aggregate Concepts."),
            ],
        )

    @classmethod
    def execute(cls, clip, bank: Bank, text: str) -> io.NodeOutput:
        said = bank.read(text)
        concepts = [bank.get(name) for name in said.strengths]
        if not concepts:
            return io.NodeOutput(clip.encode_from_tokens_scheduled(clip.tokenize(said.text)), text)
        return io.NodeOutput(host.encode_prompt(clip, said.text, concepts, said.strengths), text)


class CIDMAggregate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CIDMAggregate",
            display_name="Aggregate Concepts",
            category="CIDM",
            description="Merges the concepts of a prompt into the model, layer by layer: as fast as the plain model, with any sampler. "
            "The model also reads the layer-wise words of Encode Prompt with Concepts.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that the concepts were learned on. It stays as it is: a patched copy comes out."
                ),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ConceptBank.Input("bank", tooltip="The bank with the concepts."),
                io.String.Input("text", default=PROMPT, multiline=True, tooltip="The same prompt as in Encode Prompt with Concepts."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="exact",
                    tooltip="exact: the concepts named in the prompt, fully. released: weights by likeness of words, as in the authors' "
                    "code. paper: weights by the paper's equation 3.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.01, tooltip="How strongly the concepts act; 0 leaves the model plain."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the concepts in it, for a sampler."),
                io.String.Output(display_name="weights", tooltip="The weight of every concept in every cross-attention layer, as a table."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, bank: Bank, text: str, mode: str, strength: float) -> io.NodeOutput:
        backbone = host.ComfyBackbone(model, clip)
        mixture = mix(backbone, bank, text, mode, strength)
        shown = table(mixture.weights, mixture.concepts, list(backbone.cross_attention)) if mixture.concepts else "no concept in the prompt"
        return say.output(cls, host.apply(model, mixture.factors(backbone)), shown, text=shown, warnings=mixture.warnings)


PAINT_NODES = [CIDMEncodePrompt, CIDMAggregate]
