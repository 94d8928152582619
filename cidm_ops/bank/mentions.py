"""Which concepts a prompt mentions, and how strongly: ``<dog>``, ``<dog:0.8>`` or ``<dog>:0.8``, and triggers of other LoRAs.

The host's own ``(<dog>:1.2)`` stays in the text: it weighs words, not the concept's factors.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..tokens import WORD

NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"
MENTION = re.compile(rf"<([A-Za-z0-9][A-Za-z0-9_.-]*)(?::({NUMBER}))?>(?::({NUMBER})(?![\d.]|\s*\)))?")


@dataclass(frozen=True)
class Prompt:
    """``text`` has the handles written out; ``strengths`` says by name how strongly the concepts in it act, in the order learned."""

    text: str
    strengths: Mapping[str, float]


class Vocabulary:
    """The words, handles and triggers of a bank's concepts."""

    def __init__(self, headers: Mapping[str, Mapping[str, Any]]):
        self.headers = headers
        self.owner = {word: name for name, header in headers.items() for word in header["words"]}
        self.triggers = {trigger.lower(): name for name, header in headers.items() for trigger in header["triggers"]}
        self.place = {name: i for i, name in enumerate(headers)}

    def read(self, prompt: str) -> Prompt:
        """Raises ``KeyError`` for a ``<word>`` that no concept has, ``ValueError`` for two different strengths of one concept."""
        mentioned: dict[str, float | None] = {}

        def write_out(match: re.Match[str]) -> str:
            name, word = match[1], f"<{match[1]}>"
            owner = name if name in self.headers else self.owner[word]
            strength = match[2] or match[3]
            given = mentioned.get(owner)
            if strength and given not in (None, float(strength)):
                raise ValueError(f"<{owner}> has two strengths in one prompt, {given:g} and {float(strength):g}: give one")
            mentioned[owner] = float(strength) if strength else given
            return self.written(name) if name in self.headers else word

        text = MENTION.sub(write_out, prompt)
        for _, owner in self.triggered(WORD.sub(" ", text)):
            mentioned.setdefault(owner, None)
        known = sorted(mentioned.items(), key=lambda item: self.place[item[0]])
        return Prompt(text, {name: 1.0 if strength is None else strength for name, strength in known})

    def parts(self, prompt: str) -> list[tuple[str, str | None]]:
        """The prompt in pieces, each with the concept it mentions: a name, "" for a ``<word>`` that no concept has, None for the rest."""
        marks = [(m.start(), m.end(), m[1] if m[1] in self.headers else self.owner.get(f"<{m[1]}>", "")) for m in MENTION.finditer(prompt)]
        plain = MENTION.sub(lambda m: " " * len(m[0]), prompt)
        marks += [(m.start(), m.end(), owner) for m, owner in self.triggered(plain)]
        pieces: list[tuple[str, str | None]] = []
        at = 0
        for begin, end, owner in sorted(marks):
            if begin >= at:
                pieces += [(prompt[at:begin], None), (prompt[begin:end], owner)]
                at = end
        return [(text, owner) for text, owner in [*pieces, (prompt[at:], None)] if text]

    def triggered(self, said: str) -> Iterator[tuple[re.Match[str], str]]:
        """Where a text has a trigger, as words of their own, in any case, and the concept it belongs to."""
        said = said.lower()
        for trigger, owner in self.triggers.items():
            if trigger in said:
                yield from ((match, owner) for match in re.finditer(rf"(?<!\w){re.escape(trigger)}(?!\w)", said))

    def written(self, name: str) -> str:
        """What a handle stands for: all words of the concept, or the first trigger of a LoRA that was learned elsewhere. That of an
        Infusion concept stays: which of the class words in a prompt are its own has to be known to the end.
        """
        header = self.headers[name]
        if header["method"] == "infusion":
            return f"<{name}>"
        return " ".join(header["words"]) or next(iter(header["triggers"]), "")
