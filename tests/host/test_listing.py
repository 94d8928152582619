"""What the front end asks a running ComfyUI for: banks, their concepts and thumbnails; and what it does not get."""

import io
import json
import shutil
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept_file import load_concept, save_concept

TEN = Path(__file__).resolve().parents[2] / "cidm_ops" / "doodle" / "ten"
PAGE = b"<html><script>alert(1)</script></html>"


def ask(server, path):
    """Status, content type, whether the browser may guess another, and what came."""
    try:
        with urllib.request.urlopen(server.url + path, timeout=60) as answer:
            return answer.status, answer.headers.get_content_type(), answer.headers["X-Content-Type-Options"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get_content_type(), error.headers["X-Content-Type-Options"], error.read()


def png(mode="RGBA", side=300):
    data = io.BytesIO()
    Image.new(mode, (side, side), "red").save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def shelf(server):
    """A bank of three concepts: one as it ships, one with a page as its thumbnail, one with a large PNG."""
    folder = server.bank("listed")
    folder.mkdir(parents=True)
    shutil.copy(TEN / "dog.safetensors", folder)
    for name, preview in {"cat": PAGE, "bear": png()}.items():
        save_concept(replace(load_concept(TEN / f"{name}.safetensors"), preview=preview), folder / f"{name}.safetensors")
    (folder.parent / "no bank.txt").write_text("secret")
    (folder.parent / ".hidden").mkdir()
    return folder


def test_banks_and_their_concepts_are_listed_in_the_order_learned(server, shelf):
    assert "listed" in server.get("/cidm/banks") and not {"no bank.txt", ".hidden"} & {*server.get("/cidm/banks")}
    found = server.get("/api/cidm/banks/listed")
    assert [concept["name"] for concept in found] == Bank(shelf).names
    dog = next(concept for concept in found if concept["name"] == "dog")
    assert dog == {"name": "dog", "class_word": "dog", "words": ["<dog>", "<dog.1>", "<dog.2>"], "thumbnail": True}
    assert {concept["name"]: concept["thumbnail"] for concept in found} == {"dog": True, "bear": True, "cat": False}


def test_a_concept_that_comes_or_is_described_anew_is_seen_at_once(server, shelf):
    folder = server.bank("growing")
    folder.mkdir()
    assert server.get("/cidm/banks/growing") == []
    concept = load_concept(TEN / "ink.safetensors")
    save_concept(replace(concept, preview=b""), folder / "ink.safetensors")
    assert [c["thumbnail"] for c in server.get("/cidm/banks/growing")] == [False]
    save_concept(replace(concept, class_word="etching"), folder / "ink.safetensors")
    assert [(c["class_word"], c["thumbnail"]) for c in server.get("/cidm/banks/growing")] == [("etching", True)]


@pytest.mark.parametrize("name", ["dog", "bear"])
def test_a_thumbnail_is_a_small_jpeg_of_ours_whatever_the_file_has(server, shelf, name):
    status, kind, guess, data = ask(server, f"/cidm/banks/listed/{name}/thumbnail")
    assert (status, kind, guess) == (200, "image/jpeg", "nosniff")
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "JPEG" and max(picture.size) == 128


def test_what_is_no_picture_is_not_sent_on(server, shelf):
    status, kind, _, data = ask(server, "/cidm/banks/listed/cat/thumbnail")
    assert (status, kind) == (404, "text/plain") and PAGE not in data and b"no thumbnail" in data


@pytest.mark.parametrize("path", ["/cidm/banks/nobody", "/cidm/banks/nobody/dog/thumbnail", "/cidm/banks/listed/nobody/thumbnail"])
def test_an_unknown_name_is_said_so(server, shelf, path):
    status, kind, _, data = ask(server, path)
    assert (status, kind) == (404, "text/plain") and b"there is no" in data and b"nobody" in data


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "..%2flisted", "no%20bank.txt", ".hidden", "a" * 65, "%2fetc%2fpasswd", "listed%00", "con:x"]
)
@pytest.mark.parametrize(
    "path", ["/cidm/banks/{}", "/cidm/banks/{}/dog/thumbnail", "/cidm/banks/listed/{}/thumbnail", "/cidm/doodle/{}/thumbnail"]
)
def test_what_is_no_name_reaches_nothing(server, shelf, path, name):
    status, _, _, data = ask(server, path.format(name))
    assert status in (400, 404) and b"secret" not in data and b"Traceback" not in data
    if name not in ("..", "%2e%2e"):  # these are resolved before any route sees them
        assert status == 400 and b"expected 1 to 64 letters" in data


def test_a_damaged_bank_gives_what_is_whole_and_no_traceback(server, shelf):
    folder = server.bank("half_damaged")
    folder.mkdir()
    shutil.copy(TEN / "duck.safetensors", folder)
    (folder / "broken.safetensors").write_bytes(b"\xff" * 100)
    (folder / "cut.safetensors").write_bytes((TEN / "dog.safetensors").read_bytes()[:1000])
    (folder / "index.json").write_text(json.dumps({"format": 1, "concepts": {"duck.safetensors": {"stamp": 1, "header": []}}}))
    before = server.log.read_text().count("Traceback")
    assert [concept["name"] for concept in server.get("/cidm/banks/half_damaged")] == ["duck"]
    assert ask(server, "/cidm/banks/half_damaged/broken/thumbnail")[0] == 404
    assert server.log.read_text().count("Traceback") == before


def test_the_ten_of_doodle_are_known_before_their_bank_is_made(server):
    found = server.get("/cidm/doodle")
    assert len(found) == 10 and all(concept["thumbnail"] for concept in found)
    assert ask(server, "/cidm/doodle/duck/thumbnail")[:3] == (200, "image/jpeg", "nosniff")
    assert not (server.pack / "cidm_ops" / "doodle" / "ten" / "index.json").exists(), "nothing is written where the pack lies"
