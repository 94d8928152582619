"""Wishes, read from plain words or from what a language model answered."""

from comfy_api.latest import io

from ..cidm_ops.bank.bank import Bank
from ..cidm_ops.method.regions import RegionMask, box_mask
from ..cidm_ops.painting.wish import regions_of
from ..cidm_ops.painting.wish_answer import question
from ..cidm_ops.painting.wish_reading import read_wish, wish_in
from . import say
from .bank import ConceptBank
from .regions import RegionList
from .schema import schema

CATEGORY = "CIDM/wish"
WISH = "my dog at the beach, as an ink drawing"


class CIDMReadWish(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CIDMReadWish",
            display_name="Read Wish",
            aliases="assistant, chat, natural language, instruction, prompt from text, llm, prompt writer, cafe, customization assistant",
            category=CATEGORY,
            description="Reads what somebody would like to see, in plain words or as a language model answered it, and makes a prompt with "
            "the bank's concepts, a negative prompt and regions of it. By plain rules of English; asks no model.",
            inputs=[
                io.String.Input(
                    "wish",
                    default=WISH,
                    multiline=True,
                    tooltip="In your own words. 'my dog' means the bank's concept of a dog, so do a concept's name and <name>. After "
                    "another Read Wish it says what changes: 'now at night', 'without the hat', 'more like my dog'.",
                ),
                ConceptBank.Input("bank", optional=True, tooltip="The bank whose concepts may be meant."),
                io.String.Input(
                    "answer",
                    optional=True,
                    force_input=True,
                    tooltip="What any language-model node answered to question, instead of the rules. Where no JSON is in it, the rules "
                    "read the wish.",
                ),
                io.String.Input(
                    "before", optional=True, force_input=True, tooltip="The wish output of another Read Wish, which this one changes."
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="What to paint, concepts as <name>: for Paint with Concepts."),
                io.String.Output(display_name="negative", tooltip="What was not wanted."),
                RegionList.Output(
                    display_name="regions", tooltip="Things that were given places, such as on the left; none if fewer than two."
                ),
                io.Float.Output(
                    display_name="identity", tooltip="How strongly a picture is followed for such a wish: for Reference Attention."
                ),
                io.Float.Output(display_name="end_percent", tooltip="Until when in the sampling: for Reference Attention."),
                io.String.Output(display_name="edits", tooltip="What is to be other about the subject, one a line."),
                io.String.Output(display_name="reply", tooltip="What a person is told."),
                io.String.Output(display_name="wish", tooltip="The wish as it is now, for before of the next Read Wish."),
                io.String.Output(display_name="question", tooltip="What to ask a language model, for a node of your own."),
                io.String.Output(display_name="plain", tooltip="The prompt with class words in the place of concepts, for Pick Best."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, wish: str, bank: Bank | None = None, answer: str = "", before: str = "") -> io.NodeOutput:
        values, told, warnings = understood(wish, bank, answer, before)
        return say.output(cls, *values, text=told, warnings=warnings)


def understood(wish: str, bank: Bank | None = None, answer: str = "", before: str = "") -> tuple[tuple, str, list[str]]:
    """The outputs of Read Wish, what it shows, and warnings."""
    vocabulary = bank.vocabulary if bank else None
    earlier, warnings = wish_in(before, vocabulary), []
    if before.strip() and earlier is None:
        warnings.append("before holds no wish, so this one stands alone: connect the wish of another Read Wish")
    answered = bool(answer.strip()) and wish_in(answer) is not None
    if answer.strip() and not answered:
        warnings.append("there is no JSON in the answer, so the wish was read by rules")
    found, notes = read_wish(answer if answered else wish, vocabulary, earlier)
    regions = tuple((text, RegionMask(box_mask(*box))) for text, box in regions_of(found, vocabulary))
    plain = vocabulary.plain(found.prompt) if vocabulary else found.prompt
    prompt, end = plain if regions else found.prompt, found.when[1]
    values = (prompt, found.negative, regions, found.identity, end, "\n".join(found.edits), found.reply, found.json())
    told = [f"{found.kind}: {found.prompt}", *([f"not: {found.negative}"] if found.negative else []), found.reply]
    return (*values, question(wish, vocabulary), plain), "\n".join(told), [*warnings, *notes]


WISH_NODES = [CIDMReadWish]
