"""How much of each concept every layer gets for a prompt (CIDM 3.2): the texts that a model reads, and the rule that compares them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..backbone import Backbone
from ..bank.concept import Concept
from ..method.aggregation import RULES, Rule, soft_weights, spoken_as, tables_of
from ..tokens import hide
from .config import MODES
from .texts import kept_text, kept_words, length


@torch.no_grad()
def weights(
    mode: str, backbone: Backbone, prompt: str, concepts: Sequence[Concept], strengths: Mapping[str, float], rule: Rule | None = None
) -> Tensor:
    """Weights ``[L, G]`` of ``concepts`` for a prompt whose handles are written out; ``strengths`` are those in its text.

    ``rule`` takes the place of that of a soft mode. Raises ``ValueError`` for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"aggregation mode {mode!r}: expected one of {', '.join(MODES)}")
    layers = len(backbone.cross_attention)
    if mode == "exact" or not concepts:
        return torch.tensor([strengths.get(c.name, 0.0) for c in concepts]).expand(layers, -1)
    rule = rule or RULES[mode]
    tables = tables_of(concepts)
    context = kept_text(backbone, prompt, concepts).context[0]
    if rule.positions == "words":
        encoder = backbone.family.encoder()
        ids = backbone.tokenize(hide(prompt, tables, encoder.placeholders)[0])
        real = (ids != encoder.end).cumprod(1).bool()
        real[:, : encoder.first] = False
        context = context[:, real.flatten().to(context.device)]
    if not context.shape[1]:
        return torch.zeros(layers, len(concepts))
    found = soft_weights(context, word_states(backbone, concepts, rule.joint), rule)
    return found * torch.tensor([strengths.get(c.name, 1.0) for c in concepts]).to(found)


def word_states(backbone: Backbone, concepts: Sequence[Concept], joint: bool) -> list[Tensor]:
    """Text states ``[L, k, C]`` of each concept's words: each on its own after "a", or all in one text in task order.

    Raises ``ValueError`` when the words do not fit into one chunk of text: use another mode.
    """
    if not joint:
        return kept_words(backbone, concepts)
    encoder = backbone.family.encoder()
    lengths = [length(backbone, c) for c in concepts]
    if sum(lengths) > encoder.room:
        raise ValueError(
            f"{len(concepts)} concepts have {sum(lengths)} words, the text encoder takes {encoder.room} at once: use mode 'exact' or 'soft'"
        )
    keys = kept_text(backbone, " ".join(map(spoken_as, concepts)), concepts).context[0]
    return list(keys[:, encoder.first : encoder.first + sum(lengths)].split(lengths, 1))
