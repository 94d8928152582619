"""A wish read by plain rules of English: each takes out of the text what it knows, and what is left is the subject. Nothing raises."""

import re
from dataclasses import replace

from ..grammar import article
from .wish import MADE, Part, Wish, kind_of
from .wish_words import Words

STEP = 0.25  # of identity, for "more like" and "less like"
MEDIUM = (
    "painting|drawing|sketch|watercolou?r|illustration|cartoon|comic|engraving|etching|woodcut|mosaic|poster|photo|photograph|portrait|"
    "collage|print|fresco|render|pixel art|vector art|line art|graffiti|tapestry|sculpture|stained glass"
)
DONE = {"painted": "painting", "drawn": "drawing", "sketched": "sketch", "inked": "ink painting", "photographed": "photo"}
STUFF = {
    "oil": "oil painting", "oils": "oil painting", "watercolor": "watercolor painting", "watercolour": "watercolour painting",
    "watercolors": "watercolor painting", "watercolours": "watercolour painting", "acrylic": "acrylic painting",
    "acrylics": "acrylic painting", "pastel": "pastel drawing", "pastels": "pastel drawing", "pencil": "pencil drawing",
    "charcoal": "charcoal drawing", "crayon": "crayon drawing", "crayons": "crayon drawing", "chalk": "chalk drawing",
    "ink": "ink painting",
}  # fmt: skip
COLOUR = "red|orange|yellow|green|blue|purple|pink|brown|black|white|grey|gray|gold|golden|silver"
AT = (
    "on|at|in|inside|under|underneath|beneath|beside|near|by|next to|in front of|behind|among|over|above|below|through|across|during|"
    "around|outside|within|against|between|along|amid|upon|aboard|atop"
)
HANDLE = r"<[^<>\s]{1,80}>"
WORD = rf"(?:{HANDLE}|[\w'-]+)"

POLITE = re.compile(
    r"(?:please|hi|hello|hey|ok|okay|so|well|now|but|and|then|also|instead|this time|again|just|maybe|perhaps|actually)\b[\s,.!:;-]*", re.I
)
ASK = re.compile(
    r"(?:(?:i|we)(?:'d| would)? (?:really )?(?:love|like|want|wish|need)(?: you)?(?: to (?:see|have|get))?|"
    r"(?:can|could|would|will) you(?: please)?|let me see|let's see|let (?:it|him|her|them) be|how about|what about|imagine)\b[\s,:]*",
    re.I,
)
MAKE = re.compile(
    r"(?:(?:show|paint|draw|make|create|generate|give|render|produce|see|do|put|place|have|change|turn|add|try|let)\b"
    r"(?: (?:me|us|it|him|her|them|that|this))?(?: (?:be|to|in ?to)\b)?(?=\s|$))[\s,:]*",
    re.I,
)
OF = re.compile(r"(?:an?|the|one|some)? ?(?:nice |new |good )?(?:picture|image|pic)s? (?:of|with|that shows|showing)\s+", re.I)
MEDIUM_OF = re.compile(rf"(?:an?|the|my) ((?:[\w-]+ ){{0,3}}?(?:{MEDIUM}))s? (?:of|showing)\s+", re.I)
STYLE_OF = re.compile(
    rf",?\s*\b(?:in|with) (?:the |a )?(?:style|manner|look) of ({HANDLE}|[^,.;!?]+?)(?=\s+(?:{AT}|with|without|and|but)\b|[,.;!?]|$)", re.I
)
STYLED = re.compile(
    rf",?\s*\bin (?:the |an? |my )?({HANDLE}|(?:(?!(?:{AT}|the|and|with)\b)[\w'-]+ ){{0,3}}?(?!(?:the|an?)\b)[\w'-]+)"
    r" (?:style|manner|look)(?=[\s,.;!?]|$)",
    re.I,
)
AS_MEDIUM = re.compile(
    rf",?\s*\b(?:as|like|in ?to|to|for|make it|it as) (?:an?|the|some|one|my) ({HANDLE}|(?:[\w-]+ ){{0,3}}?(?:{MEDIUM}))(?![\w-])", re.I
)
AS_HANDLE = re.compile(rf",?\s*\b(?:as|like|in ?to) (?:an? |the |my )?({HANDLE})", re.I)
PAINTED = re.compile(rf",?\s*\b({'|'.join(DONE)})\b(?: (?:in|with|on) (?:an? |the )?({'|'.join(STUFF)}))?(?!\s+by\b)", re.I)
IN_STUFF = re.compile(rf",?\s*\bin ({'|'.join(STUFF)})(?=[\s,.;!?]|$)", re.I)
BARE_MEDIUM = re.compile(rf"\s*(?:an?|the|my) ((?:[\w-]+ ){{0,3}}?(?:{MEDIUM}))s?(?=\s*(?:[,.;!?]|$|(?:{AT})\b))", re.I)
PLAIN_AGAIN = re.compile(
    r",?\s*\b(?:not (?:painted|drawn|sketched)(?: any ?more)?|no style|without (?:any |the )?style|in no style)\b", re.I
)
NOT = "without|with no|no more|no longer|no|not|never|minus|avoid|(?:don't|do not) (?:want|show|add|include|have)|take (?:off|away)|remove"
UNWANTED = re.compile(
    rf"[,;]?\s*(?:\b(?:and|but)\s+)?\b(?:{NOT})\s+(?:any |an? |the |his |her |its |in |on |at )?"
    rf"((?:(?!\b(?:and|but|with|{AT})\b)[^,.;!?])+)",
    re.I,
)
MORE_LIKE = re.compile(r",?\s*\b(more|less) (?:like|similar to|of) (?:my |the |it|him|her|itself|this|that)?\b[^,.;!?]*", re.I)
WEAR = rf"wearing|dressed (?:as|in|up as)|carrying|holding|with (?:an?|his|her|its|their|some|two|three|no one|{COLOUR})\b"
EDIT = re.compile(
    rf"(?:^|(?<=[\s,;]))((?:{MADE}|{WEAR})"
    rf"(?:(?!\b(?:{AT}|and (?:my|an?|the)|but|wearing|holding|carrying|made)\b)[^,.;!?])*)",
    re.I,
)
COLOURED = re.compile(rf"(?<!\ba)(?<!\bthe)\s(?:but |all |in |turned )?({COLOUR})\b(?= *(?:(?:{AT})\b|[,.;!?]|$))", re.I)
ADDING = re.compile(r"(?:(?:please|now|then|but|ok|okay)[\s,]+)*(?:and|add|also|plus|with)\b(?: also| add| with)*\s", re.I)
DOING = re.compile(
    rf"\b(?:(?:is|who is|that is|while|be) )?((?!(?:{WEAR.split('|')[0]}|during|holding|carrying|morning|evening|building|painting|drawing|"
    rf"king|ring|thing|wing|string|nothing|something|clothing|lighting|engraving|etching)\b)[a-z]{{2,}}ing)\b(?! (?:of|style))"
    rf"((?:(?!\b(?:{AT}|and|but|with|{WEAR.split('|')[0]})\b)[^,.;!?])*)",
    re.I,
)
SIDE = re.compile(
    r",?\s*\b(?:on|to|at|in) (?:the |its |his |her )?(?:(far )?(left|right)(?: (?:hand )?side)?|(middle|cent(?:er|re))|(top|bottom))"
    r"(?: of (?:the )?(?:picture|image))?(?=[\s,.;!?]|$)",
    re.I,
)
WHERE = re.compile(rf"(?:^|(?<=[\s,;]))((?:{AT})\s+[^,.;!?]+)", re.I)
AND = re.compile(rf"\s*(?:,\s*(?:and\s+)?|\band\s+(?=(?:my|our|an?|the|another|one|two|some|{HANDLE})))", re.I)
OURS = re.compile(r"\b(?:my|our) (?:(?:own|dear|little|lovely|old|beloved|sweet) )*", re.I)
ONE_THING = re.compile(r"\b(?:an?|the|my|our|this|that|some)\s+", re.I)


JOINS = "and|but|is|are|please|too|as well|instead|now"
BEFORE = re.compile(rf"^(?:[\s,.;:!?\"'-]|(?:{JOINS}|with|be|it)\b)+", re.I)
AFTER = re.compile(rf"(?:[\s,]+(?:{JOINS}|again|thanks|thank you))*[\s,.;:!?\"-]*$", re.I)


def by_rules(text: str, words: Words) -> Wish:
    """What an English sentence says."""
    text = words.cleaned(text.translate(str.maketrans("\u2019\u2018\u201c\u201d\uff0c\u3002\uff1b\uff01\uff1f\u3001", "''\"\",.;!?,")))
    text, negative, unstyled = _take_unwanted(text)
    text, identity = _take_identity(text)
    text, style = _take_style(_without_asking(text), words)
    text = words.with_handles(text)
    text, parts = _take_parts(text)
    text, edits = _take_all(text, EDIT)
    text, colours = _take_all(text, COLOURED)
    text, scene = _take_all(text, WHERE)
    text, action = _take_action(text)
    subject, *others = [part for part in (trimmed(part) for part in AND.split(text)) if part] or [""]
    found = Wish(
        subject=one_thing(subject),
        edits=(*edits, *(f"in {colour}" for colour in colours)),
        action=action,
        others=tuple(one_thing(other) for other in others),
        scene=" ".join(scene),
        style="none" if unstyled and not style else style,
        negative=", ".join(negative),
        parts=parts,
    )
    return replace(found, kind=kind_of(found), identity=identity)  # of a change only, until it is finished


def _without_asking(text: str) -> str:
    """A wish without the words that only ask for it."""
    before = None
    while before != text:
        before = text
        for pattern in (POLITE, ASK, MAKE, OF):
            match = pattern.match(text)
            # "paint on the wall" would lose its verb, and "a picture of" is not all that is said
            text = text[match.end() :] if match and match.end() <= len(text) else text
    return text


def _take_unwanted(text: str) -> tuple[str, list[str], bool]:
    """What is not wanted, taken out of a text, and whether that is a style."""
    bare = PLAIN_AGAIN.sub(" ", text)
    found = [trimmed(match[1]) for match in UNWANTED.finditer(bare)]
    return UNWANTED.sub(" ", bare), [part for part in found if part], bare != text


def _take_identity(text: str) -> tuple[str, float]:
    """How much more alike it is to be, taken out of a text."""
    match = MORE_LIKE.search(text)
    if not match or match[0].strip(" ,").lower() in ("more of", "less of"):
        return text, 0.0
    return text[: match.start()] + " " + text[match.end() :], STEP if match[1].lower() == "more" else -STEP


def _take_style(text: str, words: Words) -> tuple[str, str]:
    """How it is painted, taken out of a text: a medium, "in the style of", or the handle of a style."""
    if match := BARE_MEDIUM.match(text):
        return text[match.end() :], words.with_handles(_mine(match[0], match[1]), style=True)
    if (match := MEDIUM_OF.match(text)) and "portrait" not in match[1]:
        return text[match.end() :], _style_named(match, 1, words)
    for pattern in (STYLE_OF, STYLED, AS_MEDIUM, AS_HANDLE, PAINTED, IN_STUFF):
        if not (match := pattern.search(text)):
            continue
        rest = f"{text[: match.start()]} {text[match.end() :]}"
        if pattern in (STYLE_OF, STYLED):
            said = _style_named(match, 1, words)
            return rest, said if words.mentions(said) or re.search(rf"\b(?:{MEDIUM})$", said) else f"in the style of {trimmed(said)}"
        if pattern is PAINTED:
            return rest, STUFF[match[2].lower()] if match[2] else DONE[match[1].lower()]
        if pattern is IN_STUFF:
            return rest, STUFF[match[1].lower()]
        if pattern is AS_HANDLE and match[1][1:-1].partition(":")[0] not in words.styles:
            continue
        return rest, _style_named(match, 1, words)
    return text, ""


def _style_named(match: re.Match[str], group: int, words: Words) -> str:
    return words.with_handles(_mine(match[0], match[group]), style=True).removeprefix("a ")


def _mine(whole: str, said: str) -> str:
    """The words of a style, with *my* before them if they had it."""
    return f"my {said}" if re.search(r"\bmy\b", whole, re.I) and not said.lower().startswith("my ") else said


def _take_parts(text: str) -> tuple[str, tuple[Part, ...]]:
    """Things with places of their own, if at least two have one. Their words stay in the text, as others do that are there."""
    if len(SIDE.findall(text)) < 2:
        return text, ()
    parts, rest, at = [], [], 0
    for match in SIDE.finditer(text):
        said = trimmed(re.sub(r"^[\s,;]*(?:and\s+)?", "", text[at : match.start()]))
        place = next(filter(None, match.groups()[1:])).lower()
        parts.append(Part(one_thing(said), {"center": "middle", "centre": "middle"}.get(place, place)))
        at = match.end()
    rest.append(text[at:])
    if any(not part.words for part in parts):
        return text, ()
    return " ".join(rest), tuple(parts)


def _take_all(text: str, pattern: re.Pattern[str]) -> tuple[str, list[str]]:
    """All that a pattern finds, taken out of a text."""
    found = [AFTER.sub("", " ".join(match[1].split())) for match in pattern.finditer(text)]
    return pattern.sub(" ", text), [part for part in found if part]


def _take_action(text: str) -> tuple[str, str]:
    match = DOING.search(text)
    if not match or not text[: match.start()].strip(" ,;") and not match[2].strip():
        return (text, "") if not match else (text[match.end() :], match[1])
    return f"{text[: match.start()]} {text[match.end() :]}", trimmed(match[1] + match[2])


def trimmed(text: str) -> str:
    """A text without the words and marks at its ends that only join it to others."""
    return AFTER.sub("", BEFORE.sub("", " ".join(text.split())))


def one_thing(words: str) -> str:
    """A thing with its article, whosoever it is: "my dog" that no concept stands for is a dog."""
    words = OURS.sub("a ", words.strip(), count=1) if OURS.match(words.strip()) else words.strip()
    if (
        not words
        or re.match(rf"(?:an?|the|this|that|some|two|three|four|many|several|\d+)\b|{HANDLE}", words, re.I)
        or not words[0].isascii()
    ):
        words = re.sub(rf"^({HANDLE})", r"a \1", words)
        return re.sub(r"^a (?=[aeiou])", "an ", words, flags=re.I)
    return words if words.lower().endswith("s") or " " in words and words.split()[0].lower().endswith("s") else article(words)
