"""Which concepts of a bank the words of a wish mean."""

import re
from collections.abc import Sequence

from ..bank.mentions import CLOSE, OPEN, Vocabulary

BRACKETS = re.compile(f"[{OPEN}{CLOSE}]")


class Words:
    """The concepts that a wish may mean, by the bank's vocabulary, and notes about what was meant."""

    def __init__(self, vocabulary: Vocabulary, notes: list[str]):
        self.vocabulary, self.notes = vocabulary, notes
        headers = vocabulary.headers
        self.class_words = {name: str(header["class_word"]).lower() for name, header in headers.items()}
        self.styles = {name for name, header in headers.items() if header["training"].get("kind") == "style"}
        plain = set(self.class_words.values()) | {word for own in self.class_words.values() for word in own.split()}
        self.names = {name.lower(): name for name in headers if name.lower() not in plain}

    def cleaned(self, text: str) -> str:
        """A text in which angle brackets stand around handles of the bank only, and nothing that the host would load."""
        text = re.sub(r"\bembedding:\s*", "", text, flags=re.I)
        pieces = []
        for piece, owner in self.vocabulary.parts(text):
            if owner == "":
                bare = BRACKETS.sub("", piece).strip()
                near = self.vocabulary.closest(piece)
                self.notes.append(f"no concept has the handle {piece[:60]!r}, so it was read as words" + (f": <{near}>?" if near else ""))
                piece = bare
            pieces.append(piece)
        text = "".join(pieces)
        try:
            self.vocabulary.read(text)
        except (KeyError, ValueError) as error:
            self.notes.append(f"handles were read as words: {error.args[0] if error.args else error}")
            text = BRACKETS.sub(" ", text)
        return text

    def with_handles(self, text: str, style: bool = False) -> str:
        """A text with the handles of concepts that it means: whose name stands on its own, or whose class word stands behind *my*."""
        kind = self.styles if style else set(self.class_words) - self.styles
        for lower, name in self.names.items():
            if name in kind and lower in text.lower():
                text = re.sub(rf"(?<![\w<.-])(?:(?:my|our) )?{re.escape(lower)}(?![\w>.:-])", f"<{name}>", text, flags=re.I)
        for name in sorted(kind, key=len, reverse=True):
            if style and name.lower() in text.lower():  # "my ink style"
                text = re.sub(rf"\b(?:my|our) {re.escape(name)}(?![\w-])", f"<{name}>", text, flags=re.I)
        for word in sorted({self.class_words[name] for name in kind if self.class_words[name]}, key=len, reverse=True):
            if word not in text.lower():
                continue
            owners = [name for name in self.class_words if name in kind and self.class_words[name] == word]
            chosen = next((name for name in owners if name.lower() == word), owners[0])

            def mean(match: re.Match[str], word: str = word, owners: Sequence[str] = owners, chosen: str = chosen) -> str:
                if len(owners) > 1:
                    others = ", ".join(f"<{name}>" for name in owners if name != chosen)
                    self.notes.append(f"my {word} may be <{chosen}> or {others}: <{chosen}> was taken, write a handle to say which")
                return f"a {match[1] or ''}<{chosen}>"

            text = re.sub(rf"\b(?:my|our) ((?:[\w-]+ ){{0,2}}?){re.escape(word)}(?![\w-])", mean, text, flags=re.I)
        return text

    def plain(self, text: str) -> str:
        """A text with class words in the place of concepts."""
        return self.vocabulary.plain(text)

    def mentions(self, text: str) -> bool:
        """Whether a text has the handle of a concept."""
        return any(owner for _, owner in self.vocabulary.parts(text))
