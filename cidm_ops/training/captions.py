"""What the trainer reads: captions with the concept words in them, in ever new wording."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# One slot for the whole caption. Plain views of a thing, and plain ways to name a style.
OBJECT_TEMPLATES = (
    "a photo of a {}", "a picture of a {}", "a good photo of a {}", "a close-up of a {}", "a bright photo of a {}",
    "one {}", "a {}", "the {}", "a clear picture of a {}", "a photo of the {}",
)  # fmt: skip
STYLE_TEMPLATES = ("a {}", "the {}", "a picture, {}", "a rendering, {}", "{}")
TEMPLATES = {"thing": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}  # by kind of concept
TAG = re.compile(r"<[^<>\n]*>")  # a handle, or what other trainings left
SIDE = re.compile(rf"{TAG.pattern}|\b(?:left|right)\b", re.IGNORECASE)
OTHER_SIDE = {"left": "right", "right": "left"}
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


def concept_captions(captions: Sequence[str], class_word: str, words: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """Put the concept words in the place of the concept's handle ``<name>``, or else of the class word, which is found as whole tokens:
    CLIP splits text where letters end.

    What is in angle brackets is no class word, unless it is all there is in them, as in ``<dog>``; what else is in some stays as it is. A
    caption without handle and class word gets the words in front. Returns the captions, and a warning for each of those and of what
    stayed in brackets, and one for all pictures without a caption.
    """
    return joint_captions(captions, {name: class_word}, {name: words})


def joint_captions(captions: Sequence[str], concepts: Mapping[str, str], words: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Put the ``words`` of all ``concepts``, class words by name, into captions, one concept after another as ``concept_captions`` does,
    class words of several words first: a teddy bear is not the bear. A picture without a caption is learned as all of them, with "and a"
    between.
    """
    spoken, out, warnings = {name: " ".join(own) for name, own in words.items()}, [], []
    all_of_them, known = " and a ".join(spoken.values()), {word for own in words.values() for word in own}
    if bare := sum(not caption.strip() for caption in captions):
        which = "no captions" if bare == len(captions) else f"{bare} of {len(captions)} pictures have no caption"
        warnings.append(f"{which}: what they show is learned as {all_of_them!r} alone")
    longest_first = sorted(concepts.items(), key=lambda concept: -len(concept[1].split()))
    for i, caption in enumerate(captions):
        said, told = caption if caption.strip() else all_of_them, f"caption {i + 1} ({caption[:60]!r})"
        for name, class_word in longest_first:
            said, found = spoken_caption(said, class_word, words[name], name)
            if not found:
                said = f"{spoken[name]}, {said}"
                warnings.append(f"{told} does not hold the class word {class_word!r}: {spoken[name]!r} is put in front")
        if left := [tag for tag in TAG.findall(said) if tag not in known]:
            warnings.append(f"{told} has {', '.join(left)} in it, which is no word of this concept: it is learned as plain text")
        out.append(said)
    return out, warnings


def mirror_caption(caption: str) -> str:
    """Returns what a caption says of the mirrored picture: left for right and right for left."""
    return SIDE.sub(lambda m: OTHER_SIDE.get(m[0].lower(), m[0]), caption)


def spoken_caption(caption: str, class_word: str, words: Sequence[str], name: str) -> tuple[str, bool]:
    """A caption with the concept's words where its handle or its class word is, and whether there was any such place."""
    spoken, handle = " ".join(words), re.compile(rf"<\s*{re.escape(name)}\s*(?::[^<>]*)?>", re.IGNORECASE)
    if any(word in caption for word in words) or handle.search(caption):
        return handle.sub(lambda m: m[0] if m[0] in words else spoken, caption), True
    letters = r"\s+".join(re.escape(noun) for noun in class_word.split())
    place = re.compile(rf"<\s*{letters}\s*>|{TAG.pattern}|(?<![^\W\d_]){letters}(?![^\W\d_])", re.IGNORECASE)
    alone = re.compile(rf"<?\s*{letters}\s*>?", re.IGNORECASE)
    for match in place.finditer(caption):
        if alone.fullmatch(match[0]):
            return caption[: match.start()] + spoken + caption[match.end() :], True
    return caption, False


def constant_words(captions: Sequence[str], class_word: str) -> list[str]:
    """Words that stand in every caption beside the class word: what they say is learned by them, not by the concept."""
    if len(captions) < 2:
        return []
    everywhere = set.intersection(*(set(re.findall(r"[a-z]+", caption.lower())) for caption in captions))
    return sorted(everywhere - COMMON - set(class_word.lower().split()))
