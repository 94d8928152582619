"""What the pages link to or name is there: files, headings of files, pictures."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

PACK = Path(__file__).resolve().parents[2]
HELP = PACK / "web" / "docs"  # the host shows these alone, without what lies around them
PAGES = (
    [PACK / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md")]
    + sorted((PACK / "docs").glob("*.md"))
    + sorted(HELP.glob("*.md"))
)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.M | re.S)
LINK = re.compile(r"\]\(\s*([^)\s]+)[^)]*\)|\b(?:src|href|srcset)=\"([^\"\s]+)\"")
NAMED = re.compile(r"`((?:cidm_ops|docs|nodes|tests|web|workflows)/[\w./-]+\.\w+)`")
HEADING = re.compile(r"^#+ (.+)$", re.M)


def links_of(page: Path) -> list[str]:
    """What a page links to inside the pack, as it is written: nothing with a scheme."""
    found = [a or b for a, b in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))]
    return [link for link in found if not re.match(r"[a-z]+:|//", link)]


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page: lower case, without marks, hyphens for blanks, counted where they repeat."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    anchors: set[str] = set()
    for heading in HEADING.findall(text):
        said = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        plain = re.sub(r"[^\w\- ]", "", said).replace(" ", "-")
        repeats = sum(bool(re.fullmatch(rf"{re.escape(plain)}(-\d+)?", known)) for known in anchors)
        anchors.add(f"{plain}-{repeats}" if repeats else plain)
    return anchors


def wrong_with(page: Path, link: str) -> str:
    """Say why a link leads nowhere; "" if it does not."""
    path, _, anchor = link.partition("#")
    target = (page.parent / unquote(path)).resolve() if path else page
    if not target.is_relative_to(HELP if page.parent == HELP else PACK):
        return f"{link}: outside of what is shown with the page"
    if not target.exists():
        return f"{link}: no such file"
    return f"{link}: no such heading" if anchor and anchor not in anchors_of(target) else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PACK)))
def test_every_link_of_a_page_leads_somewhere(page):
    assert not [wrong for link in links_of(page) if (wrong := wrong_with(page, link))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PACK)))
def test_every_file_of_the_pack_that_a_page_names_is_there(page):
    assert not [name for name in NAMED.findall(page.read_text(encoding="utf-8")) if not (PACK / name).exists()]


def test_the_check_of_links_knows_a_dead_one(tmp_path):
    page = PACK / "docs" / "training_trouble.md"
    assert wrong_with(page, "#too-much") == wrong_with(page, "faq.md") == wrong_with(page, "../README.md") == ""
    assert wrong_with(page, "#too-many") and wrong_with(page, "fag.md") and wrong_with(page, "../../elsewhere.md")
    page = tmp_path / "page.md"
    page.write_text(
        '![a](b.png) <img src="c.png"> [d](e.md#f "title") `[g](h.md)` [i](https://j)\n'
        "```\n[k](l.md)\n```\n## It is `x`, *twice*\n## It is x twice"
    )
    assert links_of(page) == ["b.png", "c.png", "e.md#f"]
    assert anchors_of(page) == {"it-is-x-twice", "it-is-x-twice-1"}
