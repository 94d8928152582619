"""Looking into a bank, without a model."""

from collections.abc import Iterable

from comfy_api.latest import io
from PIL import Image

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.measure.cards import bank_table, concept_card
from ..cidm_ops.measure.pictures import overlap_map, pair_map, to_image
from ..cidm_ops.measure.routing import routing_preview
from ..cidm_ops.method.overlap import closest
from . import say
from .bank import BANK, CATEGORY, listing
from .paint import HANDLES, PROMPT
from .schema import schema


def picture_outputs(what: str) -> list[io.Output]:
    return [io.Image.Output(display_name="picture", tooltip=what), io.String.Output(display_name="text", tooltip="The same in words.")]


def preview(cls: type[io.ComfyNode], drawn: Image.Image, text: str, warnings: Iterable[str] = ()) -> io.NodeOutput:
    """Show a picture and its words, as outputs and in the node."""
    picture = to_image(drawn)
    return say.output(cls, picture, text, text=text, warnings=warnings, picture=picture)


class CIDMBankTable(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMBankTable",
            display_name="Bank Table",
            aliases="list concepts, show loras, overview, thumbnails",
            category=CATEGORY,
            description="All concepts of a bank in one picture: thumbnail, words, base, rank, size, author and licence. Damaged files "
            "are red.",
            inputs=[BANK],
            outputs=picture_outputs("The table."),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, bank: Bank) -> io.NodeOutput:
        return preview(cls, bank_table(bank), listing(bank), bank.damaged.values())


class CIDMConceptCard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMConceptCard",
            display_name="Concept Card",
            aliases="concept info, lora info, metadata, thumbnail, trigger words",
            category=CATEGORY,
            description="All about one concept: thumbnail, words, training settings, and how much was learned in each layer.",
            inputs=[BANK, io.String.Input("name", default="dog", tooltip="The concept's name.")],
            outputs=picture_outputs("The card."),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, bank: Bank, name: str) -> io.NodeOutput:
        concept = bank.get(name.strip())
        text = f"{bank.title(concept.name)}: {' '.join([*concept.words, *concept.triggers])}"
        return preview(cls, concept_card(concept, bank.file(concept.name)), text)


class CIDMOverlapMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMOverlapMap",
            display_name="Overlap Map",
            aliases="similarity of loras, interference, conflict, heat map, compare concepts",
            category=CATEGORY,
            description="How much concepts write into the same directions: cosines of principal angles, 0 nothing in common, 1 the same. "
            "All pairs, or one pair layer by layer.",
            inputs=[
                BANK,
                io.String.Input("first", default="", tooltip="A concept's name, to compare one pair layer by layer. Empty: all pairs."),
                io.String.Input("second", default="", tooltip="The other concept of the pair."),
            ],
            outputs=picture_outputs("The map."),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, bank: Bank, first: str, second: str) -> io.NodeOutput:
        if first.strip() and second.strip():
            drawn, found = pair_map(bank.get(first.strip()), bank.get(second.strip()))
            text = f"<{first.strip()}> and <{second.strip()}>: {found.mean():.3f} on average, at most {found.max():.3f}"
        else:
            concepts = [bank.get(name) for name in bank.names]
            drawn, found = overlap_map(concepts)
            text = closest(found, bank.names) or "fewer than two concepts"
        return preview(cls, drawn, text, bank.damaged.values())


class CIDMRoutingPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMRoutingPreview",
            display_name="Routing Preview",
            aliases="lora weights, layer weights, heat map, block weights",
            category=CATEGORY,
            description="What a prompt takes from a bank, before anything is painted: whose words are in it, how strongly each concept "
            "acts, what the text encoder reads, and which words nobody has.",
            inputs=[
                BANK,
                io.String.Input("text", default=PROMPT, multiline=True, tooltip=f"{HANDLES}."),
            ],
            outputs=picture_outputs("The prompt and its concepts."),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, bank: Bank, text: str) -> io.NodeOutput:
        return preview(cls, *routing_preview(bank, text))


VIEW_NODES = [CIDMBankTable, CIDMConceptCard, CIDMOverlapMap, CIDMRoutingPreview]
