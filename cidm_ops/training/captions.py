"""What the trainer reads: captions with the concept words in them, in ever new wording."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

# One slot for the whole caption. Plain views of a thing, and plain ways to name a style.
OBJECT_TEMPLATES = (
    "a photo of a {}", "a picture of a {}", "a good photo of a {}", "a close-up of a {}", "a bright photo of a {}",
    "one {}", "a {}", "the {}", "a clear picture of a {}", "a photo of the {}",
)  # fmt: skip
STYLE_TEMPLATES = ("a {}", "the {}", "a picture, {}", "a rendering, {}", "{}")
TEMPLATES = {"thing": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}  # by kind of concept
INFUSION_TEMPLATES = (*OBJECT_TEMPLATES, "{}")
COMMON = frozenset(
    "a an the of in on at by to and or with is are it its his her this that up from for over under one two".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Wording:
    """How a caption varies from step to step: a template around it, its comma parts in another order, sometimes none at all."""

    templates: tuple[str, ...] = OBJECT_TEMPLATES
    shuffle: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.templates or any(t.count("{}") != 1 for t in self.templates):
            raise ValueError(f"caption templates {list(self.templates)}: expected at least one, each with one {{}} for the caption")

    def say(self, caption: str, rng: random.Random) -> str:
        """One wording of a caption; the first comma part stays first. An empty text trains the unconditional side."""
        if rng.random() < self.dropout:
            return ""
        if self.shuffle and "," in caption:
            first, *rest = (part.strip() for part in caption.split(","))
            rng.shuffle(rest)
            caption = ", ".join([first, *rest])
        return rng.choice(self.templates).replace("{}", caption)


def concept_captions(captions: Sequence[str], class_word: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Put the concept words in the place of the class word, found as whole tokens: CLIP splits text where letters end.

    A caption without the class word gets the words in front. Returns the captions and a warning for each of those.
    """
    spoken = " ".join(words)
    letters = r"\s+".join(re.escape(noun) for noun in class_word.split())
    pattern = re.compile(rf"(?<![^\W\d_]){letters}(?![^\W\d_])", re.IGNORECASE)
    out, warnings = [], []
    for i, caption in enumerate(captions):
        if pattern.search(caption):
            out.append(pattern.sub(lambda _: spoken, caption, count=1))
        else:
            out.append(f"{spoken}, {caption}" if caption else spoken)
            if caption:
                warnings.append(
                    f"caption {i + 1} ({caption[:60]!r}) does not hold the class word {class_word!r}: {spoken!r} is put in front"
                )
    return out, warnings


def constant_words(captions: Sequence[str], class_word: str) -> list[str]:
    """Words that stand in every caption beside the class word: what they say is learned by them, not by the concept."""
    if len(captions) < 2:
        return []
    everywhere = set.intersection(*(set(re.findall(r"[a-z]+", caption.lower())) for caption in captions))
    return sorted(everywhere - COMMON - set(class_word.lower().split()))
