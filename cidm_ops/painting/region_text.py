"""The text of a region for a model in which all layers read one text: where its concepts' words stand, and how much of its end it keeps."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from ..concept_text import ConceptText
from ..row_plan import RowPlan
from .compose import ParsedPrompt
from .scope import masks_of_triggers

CUT_TO = 64  # tokens: as transformers that do not fill texts up read most prompts
Ids = Callable[[str], Sequence[int]]  # of the tokens of a text, as the model reads them


def region_text(said: ParsedPrompt, states: Tensor, ids: Ids | None, sought: bool, padding: bool) -> ConceptText:
    """The text of a region with these ``states [1, N, C]``, or without most of its ``padding``. If the region is ``sought``, it says where
    the words of its concepts stand. The last of ``ids`` are those of the last states: some encoders cut off the template that they put a
    text in, and in some families states of other encoders stand in front. It is ``None`` where nobody knows the tokens.

    Raises ``ValueError`` for a region that is sought by words that do not stand in its text.
    """
    count = states.shape[1]
    found = masks_of_triggers(said.text, said.concepts, ids) if sought and ids else {}
    masks = {name: F.pad(mask[-count:], (max(count - len(mask), 0), 0)) for name, mask in found.items()}
    if sought and not masks:
        raise ValueError(
            f"the region of {said.text!r} is to be found by its concept, and no trigger or class word of that stands in the text: import "
            "it with one (Import Concept, `cidm bank import`), or draw the region"
        )
    if ids and not padding:
        own = ids(said.text)[-count:]
        stay = count - len(own) + length_without_padding(own)
        states, masks = states[:, :stay], {name: mask[:stay] for name, mask in masks.items()}
    return ConceptText.of(states, [RowPlan(token_masks=masks)])


def length_without_padding(ids: Sequence[int]) -> int:
    """How many of a text's token ``ids`` stay if the run of one id that fills it up is cut to a multiple of ``CUT_TO`` tokens."""
    filled = next((n for n, token in enumerate(reversed(ids)) if token != ids[-1]), 0)
    if filled < 2:  # the last is a token of its own
        return len(ids)
    words = len(ids) - filled
    return min(len(ids), -(-words // CUT_TO) * CUT_TO)
