"""The name of a model's architecture, which decides whether a concept fits it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """An architecture is the family's name, its layers that read the text, by kind of block, and the width of that text. As text
    "sd1-16x768", or "flux1-19+38x3072" with several kinds of blocks.
    """

    family: str
    layers: tuple[int, ...]
    width: int

    def __str__(self) -> str:
        return f"{self.family}-{'+'.join(map(str, self.layers))}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Raises ``ValueError`` for a text that is no architecture."""
        match = re.fullmatch(r"(?P<family>[a-z][a-z0-9_]*)-(?P<layers>\d+(?:\+\d+)*)x(?P<width>\d+)", text)
        if match is None:
            raise ValueError(f"architecture {text[:40]!r}: expected a family, its layers and the width of its text, such as sd1-16x768")
        return cls(match["family"], tuple(map(int, match["layers"].split("+"))), int(match["width"]))

    @property
    def count(self) -> int:
        """All layers that read the text."""
        return sum(self.layers)
