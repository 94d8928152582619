"""Which concepts a prompt mentions, and how strongly: ``<dog>``, ``<dog:0.8>`` or ``<dog>:0.8``, and triggers of other LoRAs.

The host's own ``(<dog>:1.2)`` stays in the text: it weighs words, not the concept's factors. What looks like a handle and is none,
such as ``<dog: 0.8>``, ``<dog`` or ``<Dog>``, is refused with what was probably meant, never read as plain text.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from ..models.registry import family_of
from ..tokens import WORD
from .header import RESIDUALS

NAMED = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"
MENTION = re.compile(rf"<({NAMED})(?::({NUMBER}))?>(?::({NUMBER})(?![\w.]|,\d|\s*\)))?")
EMPHASIS = re.compile(rf":\s*{NUMBER}\s*\)")  # the host's own, behind a handle in round brackets
MISWRITTEN = re.compile(r":[-+]?[.,]?\d[\w.,]*")  # behind a handle: a strength that is no number
TAG = re.compile(r"<(?:lora|lyco):[^<>\n]*>")  # of other programs: it means nothing here and stays text
OPEN, CLOSE = "<\uff1c\u2039\u3008", ">\uff1e\u203a\u3009"  # angle brackets, those of other keyboards too
SHORT = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}"  # NAMED, bounded: it is looked for at every letter
CLOSED = re.compile(rf"[{OPEN}]([ \t]*)(\w[^{OPEN}{CLOSE}\n]{{0,100}})[{CLOSE}]")
UNCLOSED = re.compile(rf"(?<!\w)[{OPEN}]([ \t]*)({SHORT}(?:[ \t]*:[ \t]*[-+]?[\d.,]{{1,20}})?)")
UNOPENED = re.compile(rf"(?<![\w{OPEN}])()({SHORT})[{CLOSE}]")
SHAPED = re.compile(rf"{SHORT}[ \t]*(?::.*)?")


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

    @cached_property
    def handles(self) -> dict[str, str]:
        """List what may stand in angle brackets, by its lower case."""
        return {handle.lower(): handle for handle in [*(word[1:-1] for word in self.owner), *self.headers]}

    def read(self, prompt: str) -> Prompt:
        """Raises ``KeyError`` for a ``<word>`` that no concept has, ``ValueError`` for two different strengths of one concept, and for
        what looks like a handle of a concept and is none.
        """
        mentioned: dict[str, float | None] = {}
        if wrong := self.lookalikes(prompt):
            text = wrong[0][2]
            raise ValueError(self.suggest(text)) if self.closest(text) else KeyError(text)

        def write_out(match: re.Match[str]) -> str:
            name, word = match[1], f"<{match[1]}>"
            owner = name if name in self.headers else self.owner[word]
            for strength in (float(part) for part in match.group(2, 3) if part):
                given = mentioned.get(owner)
                if not math.isfinite(strength):
                    raise ValueError(f"{match[0][:80]}: its strength is no finite number")
                if given not in (None, strength):
                    raise ValueError(f"<{owner}> has two strengths in one prompt, {given:g} and {strength:g}: give one")
                mentioned[owner] = strength
            mentioned.setdefault(owner, None)
            return self.write_out(name) if name in self.headers else word

        text = MENTION.sub(write_out, prompt)
        for _, owner in self.find_triggers(WORD.sub(" ", text)):
            mentioned.setdefault(owner, None)
        known = sorted(mentioned.items(), key=lambda item: self.place[item[0]])
        return Prompt(text, {name: 1.0 if strength is None else strength for name, strength in known})

    def parts(self, prompt: str) -> list[tuple[str, str | None]]:
        """The prompt in pieces, each with the concept it mentions: a name, None for the rest, and "" for what would be refused: a
        ``<word>`` that no concept has, and what looks like a handle and is none.
        """
        wrong = {begin: end for begin, end, _ in self.lookalikes(prompt)}
        marks = [(begin, end, "") for begin, end in wrong.items()]
        for m in MENTION.finditer(prompt):
            if m.start() not in wrong:
                marks.append((m.start(), m.end(), m[1] if m[1] in self.headers else self.owner.get(f"<{m[1]}>", "")))
        plain = MENTION.sub(lambda m: " " * len(m[0]), prompt)
        marks += [(m.start(), m.end(), owner) for m, owner in self.find_triggers(plain)]
        pieces: list[tuple[str, str | None]] = []
        at = 0
        for begin, end, owner in sorted(marks):
            if begin >= at:
                pieces += [(prompt[at:begin], None), (prompt[begin:end], owner)]
                at = end
        return [(text, owner) for text, owner in [*pieces, (prompt[at:], None)] if text]

    def plain(self, prompt: str) -> str:
        """The prompt with the class word of each concept in its place: what the plain model can read."""
        return "".join(self.headers[owner]["class_word"] if owner else text for text, owner in self.parts(prompt))

    def lookalikes(self, prompt: str) -> list[tuple[int, int, str]]:
        """Find what looks like a handle and is none: begin, end and the text, in order."""
        found, plain = [], list(prompt)
        for m in MENTION.finditer(prompt):
            if rest := miswritten(prompt, m):
                found.append((m.start(), rest.end(), prompt[m.start() : rest.end()]))
            plain[m.start() : m.end()] = "\n" * len(m[0])  # nothing reaches over a handle
        for m in TAG.finditer(prompt):
            plain[m.start() : m.end()] = "\n" * len(m[0])
        for pattern in (CLOSED, UNCLOSED, UNOPENED):
            for m in pattern.finditer("".join(plain)):
                begins = pattern is not UNOPENED and not m[1] and m[2][0].isalpha()
                if begins or self.first_handle(m[2]) or (pattern is CLOSED and SHAPED.fullmatch(m[2])):
                    found.append((m.start(), m.end(), m[0]))
                    plain[m.start() : m.end()] = "\n" * len(m[0])
        return sorted(found)

    def first_handle(self, text: str) -> str:
        """Find the first handle in a text, in any case; "" for none."""
        words = (word.lower().rstrip("._-") for word in re.findall(NAMED, text))
        return next((self.handles[word] for word in words if word in self.handles), "")

    def closest(self, text: str) -> str:
        """The handle that a text in angle brackets, or what was to be one, is closest to; "" for none."""
        said = re.search(SHORT, text.lower())
        near = get_close_matches(said[0], self.handles, 1, 0.66) if said else []
        return self.first_handle(text) or (self.handles[near[0]] if near else "")

    def suggest(self, text: str) -> str:
        """Say of a text that looks like a handle what was probably meant."""
        handle = self.closest(text)
        said = (part.replace(",", ".").rstrip(".") for part in re.findall(r"[:\s]\+?([\w.,-]+)", text))
        strength = next((part for part in said if re.fullmatch(NUMBER, part)), "")
        like = f"<{handle}:{strength}>" if strength else f"<{handle}>"
        return f"{text[:80]!r} is no handle of a concept: did you mean {like}? A strength is written <{handle}:0.8>, without blanks"

    def find_triggers(self, said: str) -> Iterator[tuple[re.Match[str], str]]:
        """Find where a text has a trigger, as words of their own, in any case, and the concept it belongs to."""
        lower = said.lower()
        for trigger, owner in self.triggers.items():
            if trigger in lower:
                yield from ((match, owner) for match in re.finditer(rf"(?<!\w){re.escape(trigger)}(?!\w)", said, re.IGNORECASE))

    def write_out(self, name: str) -> str:
        """Write a handle out: all words of the concept, or the first trigger of a LoRA that was learned elsewhere, or its class word where
        the base reads no words of its own. The handle of an Infusion concept stays: which of the class words in a prompt are its own has
        to be known to the end.
        """
        header = self.headers[name]
        if header["method"] == RESIDUALS:
            return f"<{name}>"
        said = " ".join(header["words"]) or next(iter(header["triggers"]), "")
        return said if said or reads_words(header["architecture"]) else header["class_word"]


def reads_words(architecture: str) -> bool:
    """Whether a base can read words of its own, as all do that this version does not know."""
    try:
        return family_of(architecture).layerwise
    except ValueError:
        return True


def miswritten(prompt: str, mention: re.Match[str]) -> re.Match[str] | None:
    """Find what stands behind a handle, looks like its strength and is none: ``:0,8`` or ``:+1``."""
    end = mention.end()
    return None if mention[3] or EMPHASIS.match(prompt, end) else MISWRITTEN.match(prompt, end)
