"""Every help page stands in every language of locales/, says there what the English one says, and is as new as it."""

import hashlib
import json
import re
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
PAGES = {page.stem: page for page in sorted((PACK / "web" / "docs").glob("*.md"))}
TRANSLATED = Path(__file__).with_name("translated_pages.json")  # a digest of each English page that was translated
# By language, what stands for "Inputs", "Outputs", "Good to know" and "optional".
WORDS = json.loads(Path(__file__).with_name("page_words.json").read_text(encoding="utf-8"))
ITEM = re.compile(r"^- \*\*(.+?)\*\*(?: \((.+?)\))?: \S", re.M)
FIXED = re.compile(r"`[^`\n]+`|\]\([^)]+\)|<https?:[^>]+>")  # what is typed or followed, whatever the language


def parts_of(page: str) -> list[tuple[str, str]]:
    """The headings of a page, the first of which is its title, each with the text under it."""
    pieces = re.split(r"^#+ (.+)\n", page, flags=re.M)
    return list(zip(pieces[1::2], pieces[2::2], strict=True))


def wrong_with(name: str, language: str) -> list[str]:
    """Say where a translated page and its English one do not say the same."""
    file = PACK / "web" / "docs" / name / f"{language}.md"
    if not file.is_file():
        return ["there is no page"]
    english, own = PAGES[name].read_text(encoding="utf-8"), file.read_text(encoding="utf-8")
    texts = json.loads((PACK / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[name]
    inputs, outputs, more, optional = WORDS[language]
    headings = {"Inputs": inputs, "Outputs": outputs, "Good to know": more}
    wrong = []
    wanted = [texts["display_name"], *(headings[heading] for heading, _ in parts_of(english)[1:])]
    if (said := [heading for heading, _ in parts_of(own)]) != wanted:
        return [f"its headings are {said}: expected {wanted}"]
    for (heading, theirs), (_, ours) in zip(parts_of(english), parts_of(own), strict=True):
        items, found = ITEM.findall(theirs), ITEM.findall(ours)
        kind = {"Inputs": "inputs", "Outputs": "outputs"}.get(heading)
        if kind:
            named = {name: text["name"] for name, text in texts[kind].items()} if kind == "inputs" else None
            names = [named[name] for name, _ in items] if named else [text["name"] for text in texts[kind].values()]
            wanted_items = list(zip(names, [optional if mark else "" for _, mark in items], strict=True))
            wrong += [] if found == wanted_items else [f"under {heading} it has {found}: expected {wanted_items}"]
        lines, own_lines = theirs.count("\n- "), ours.count("\n- ")
        wrong += [] if lines == own_lines else [f"under {heading} it has {own_lines} lines: expected {lines}"]
    fixed, own_fixed = sorted(FIXED.findall(english)), sorted(FIXED.findall(own))
    if fixed != own_fixed:
        lost, new = [f for f in fixed if f not in own_fixed], [f for f in own_fixed if f not in fixed]
        wrong.append(f"what is typed or followed differs: it lacks {lost}, it has {new}, or one of them another number of times")
    return wrong


@pytest.mark.parametrize("language", sorted(WORDS))
def test_every_help_page_says_in_this_language_what_it_says_in_english(language):
    assert {name: wrong for name in PAGES if (wrong := wrong_with(name, language))} == {}


def test_every_language_of_the_nodes_has_help_pages_and_no_page_is_left_over():
    assert {folder.name for folder in (PACK / "locales").iterdir()} == set(WORDS)
    there = {(file.parent.name, file.stem) for file in (PACK / "web" / "docs").glob("*/*.md")}
    assert there == {(name, language) for name in PAGES for language in WORDS}


def digests() -> dict[str, str]:
    return {name: hashlib.sha256(page.read_text(encoding="utf-8").encode()).hexdigest() for name, page in PAGES.items()}


def test_the_pages_are_as_new_as_the_english_ones():
    """Who changes an English page changes its translations, and then runs this file, which writes what was translated."""
    translated = json.loads(TRANSLATED.read_text(encoding="utf-8"))
    now = digests()
    assert [name for name in now if translated.get(name) != now[name]] == [] and translated.keys() == now.keys()


if __name__ == "__main__":
    TRANSLATED.write_text(json.dumps(digests(), indent=1) + "\n", encoding="utf-8")
