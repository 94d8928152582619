"""The scores of a graph, queued in the front end, and their report opened as a person would: whole, and on its own."""

import json
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="browser tests need the package playwright")
import frontend

SAVED = Path(__file__).parent / "saved"
pytestmark = pytest.mark.skipif(frontend.CHROMIUM is None, reason="browser tests need chromium")
BROKEN = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).length"


def test_a_report_of_every_score_opens_without_anything_else(page, server, tmp_path):
    workflow = json.loads((SAVED / "score_a_concept.json").read_text(encoding="utf-8"))
    assert frontend.load(page, workflow) == []
    page.evaluate("() => { for (const n of app.graph._nodes) for (const w of n.widgets || []) if (w.name === 'steps') w.value = 3 }")
    assert page.evaluate(frontend.RUN) == ""
    report = sorted((server.folder / "output" / "cidm").glob("report*.html"))[-1]
    asked, errors = [], []
    sheet = page.context.browser.new_page(viewport={"width": 1280, "height": 900})
    sheet.on("request", lambda request: asked.append(request.url))
    sheet.on("pageerror", lambda error: errors.append(str(error)))
    sheet.goto(report.as_uri())
    shown = sheet.inner_text("body")
    titles = sheet.locator("section h2").all_inner_texts()
    assert sheet.evaluate("() => document.images.length") >= 8 and sheet.evaluate(BROKEN) == 0 and errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    scores = ("Image alignment", "Text alignment", "Presence", "Diversity", "Wasserstein", "Fisher", "Forgetting", "outing")
    assert all(any(score in title for title in titles) for score in scores), titles
    assert "A concept, measured" in shown and "nan" not in shown.split()
    assert sheet.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    sheet.screenshot(path=tmp_path / "report.png", full_page=True)
    sheet.close()
