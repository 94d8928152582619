"""Folders, captions, pictures and prompts built from grammars: whatever is in them is used, or named, never silent.

``CIDM_EXAMPLES=10000`` tries as many of each kind.
"""

import io
import os
import re
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from examples import examples
from hypothesis import event, given
from hypothesis import strategies as st
from PIL import Image

from cidm_ops.bank.mentions import Vocabulary
from cidm_ops.bank.picture_file import open_picture
from cidm_ops.text_file import read_text
from cidm_ops.training.captions import TAG, concept_captions
from cidm_ops.training.folder import from_folder

# Folders

STEMS = ("a", "b", "a_mask", "b-mask", "_mask", "c.d", "A", "\u732b", "e f")
ENDINGS = (".png", ".PNG", ".jpg", ".gif", ".tif", ".webp", ".txt", ".TXT", ".heic", ".jxl", ".md", ".caption", ".npz", "")
PLACES = ("", "", "", "2_x", "0_x", "masks", "2_x/masks", "other")
CONTENTS = ("picture", "picture", "picture", "grey", "16 bits", "empty", "text", "cut", "pipe", "link to nothing", "folder")
FILES = st.lists(
    st.tuples(
        st.sampled_from(PLACES),
        st.sampled_from(("", "", "", "", "._")),
        st.sampled_from(STEMS),
        st.sampled_from(ENDINGS),
        st.sampled_from(CONTENTS),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda file: "".join(file[:4]).lower(),
)


def shade(number: int) -> int:
    """The grey of a file, by which it is known again."""
    return 40 + 20 * number


def make(file: Path, number: int, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if content == "pipe":
        os.mkfifo(file)
    elif content == "link to nothing":
        file.symlink_to(file.parent / "nowhere at all")
    elif content == "folder":
        file.mkdir()
    elif file.suffix.lower() == ".txt":
        file.write_text(f"a dog, caption {number}", encoding="utf-8")
    elif content in ("empty", "text"):
        file.write_bytes(b"" if content == "empty" else b"hello")
    else:
        data = io.BytesIO()
        if content == "16 bits":
            Image.fromarray(np.full((64, 64), 257 * shade(number), np.uint16)).save(data, "PNG")
        else:
            Image.new("L" if content == "grey" else "RGB", (64, 64), (shade(number),) * (1 if content == "grey" else 3)).save(data, "PNG")
        file.write_bytes(data.getvalue()[: 60 if content == "cut" else None])


@pytest.mark.skipif(os.name != "posix", reason="pipes and links")
@examples(120)
@given(FILES)
def test_every_file_of_a_folder_is_used_or_named(files):
    with TemporaryDirectory() as folder:
        root, numbers = Path(folder), {}
        for number, (place, hidden, stem, ending, content) in enumerate(files):
            name = str(Path(place) / f"{hidden}{stem}{ending}")
            make(root / name, number, content)
            numbers[name] = number
        try:
            data = from_folder(root, 64)
        except (ValueError, FileNotFoundError) as refusal:
            event("refused")
            assert str(root) in str(refusal) and len(str(refusal).splitlines()) == 1
            assert "no pictures in it" in str(refusal) or any(name in str(refusal) for name in numbers), str(refusal)
            return
        event("read")
        said = "\n".join(data.warnings)
        shades = {round(255 * float(mask.max())) for mask in data.masks if mask is not None}
        for name, number in numbers.items():
            unread = name.startswith(("0_x", "other")) and name.split("/")[0] in said
            seen = name in data.names or f"caption {number}" in "\n".join(data.captions) or shade(number) in shades
            hidden = Path(name).name.startswith(".") and Path(name).suffix.lower() not in (".png", ".jpg", ".gif", ".tif", ".webp", ".txt")
            inside = any(name.startswith(f"{other}/") for other in numbers)
            assert seen or name in said or unread or hidden or inside, f"{name} is passed over in silence: {data.names}, {said}"


# Texts

CODECS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "gbk", "latin-1", "shift_jis", "utf-16-le", "cp437")
NO_ZERO = st.characters(exclude_characters="\0\ufeff", exclude_categories=("Cs",))


@examples(200)
@given(st.text(NO_ZERO, max_size=60), st.sampled_from(CODECS), st.binary(max_size=4))
def test_a_text_is_read_as_it_was_written_or_named(text, codec, behind):
    with TemporaryDirectory() as folder:
        file = Path(folder) / "photo.txt"
        file.write_bytes(text.encode(codec, "ignore") + behind)
        try:
            found = read_text(file)
        except ValueError as refusal:
            event("refused")
            assert "photo.txt" in str(refusal) and "save it as UTF-8" in str(refusal)
            assert behind or not codec.startswith("utf-8"), "what is whole and says its encoding is read"
        else:
            event("read")
            assert not found.startswith("\ufeff") or behind.startswith(b"\xef\xbb\xbf") or not text
            if codec in ("utf-8", "utf-8-sig", "utf-16", "utf-32") and not behind:
                assert found == text


WORDS = ["<rex.1>", "<rex.2>"]
PIECES = (
    "a photo of",
    "dog",
    "Dog",
    "hotdog",
    "<dog>",
    "< dog >",
    "<rex>",
    "<rex:0.8>",
    "<REX>",
    "<my-dog>",
    "<lora:dog:1>",
    "<",
    ">",
    "<3",
    "<>",
    ",",
    "{}",
)


@examples(400)
@given(st.lists(st.sampled_from(PIECES) | st.text("<>dog rex:.1", max_size=8), max_size=8), st.sampled_from((" ", "")))
def test_what_is_in_brackets_in_a_caption_is_the_concept_as_a_whole_or_named(pieces, between):
    caption, spoken = between.join(pieces), " ".join(WORDS)
    (said,), remarks = concept_captions([caption], "dog", WORDS, "rex")
    assert any(word in said for word in WORDS), "the concept is in every caption"
    for tag in TAG.findall(said):
        assert tag in WORDS or (tag in caption and any(tag in remark for remark in remarks)), (caption, said, remarks)
    alone = [part for part in TAG.split(re.sub(r"<rex\.\d>", "\n", said)) if part]
    assert all(part.strip("\n, ") in caption for whole in alone for part in whole.split("\n")), "nothing else is changed"
    if not re.search(r"dog|rex", caption, re.IGNORECASE):
        assert said == (f"{spoken}, {caption}" if caption.strip() else spoken)


# Pictures


def samples() -> list[bytes]:
    found = []
    for kind, mode in (
        ("PNG", "RGBA"),
        ("JPEG", "RGB"),
        ("GIF", "P"),
        ("TIFF", "I;16"),
        ("BMP", "RGB"),
        ("WEBP", "RGB"),
        ("PPM", "L"),
        ("JPEG2000", "L"),
    ):
        data = io.BytesIO()
        exif = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"} if kind in ("JPEG", "PNG", "WEBP") else {}
        Image.new(mode, (24, 16), 5).save(data, kind, **exif)
        found.append(data.getvalue())
    return found


SAMPLES = samples()
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4)


@examples(300)
@given(st.sampled_from(SAMPLES), CHANGES, st.floats(0.05, 1), st.sampled_from((0, 64)))
def test_a_picture_is_read_in_8_bits_or_refused_with_a_reason(whole, changes, part, side):
    data = bytearray(whole)
    for at, new in changes:
        begin = int(at * (len(data) - 1))
        data[begin : begin + len(new)] = new
    data = bytes(data[: max(1, int(part * len(data)))])
    with warnings.catch_warnings(record=True) as heard:
        try:
            image = open_picture(data, side)
        except ValueError as refusal:
            event("refused")
            assert str(refusal).startswith("it") and len(str(refusal)) < 200
            assert data != whole
        else:
            event("read")
            assert image.mode not in ("I", "F") and not image.mode.startswith("I;16") and min(image.size) > 0
    assert not heard, "Pillow's warnings do not reach a person"


# Prompts

HEADER = {"triggers": (), "method": "cidm"}
KNOWN = Vocabulary({name: HEADER | {"words": (f"<{name}.1>", f"<{name}.2>")} for name in ("rex", "ted")})
NAMES = st.sampled_from(("rex", "ted"))
STRENGTHS = st.sampled_from(("0.8", "1", ".5", "-1", "2."))
PLAIN = st.sampled_from(("a dog", "in snow", "1 > 0", "(red:1.2)", "[x]", "a < b", "\u732b", "<lora:x:1>"))
RIGHT = st.one_of(NAMES.map(lambda n: (f"<{n}>", n, 1.0)), st.builds(lambda n, s: (f"<{n}:{s}>", n, float(s)), NAMES, STRENGTHS))
MISWRITTEN = st.builds(
    lambda n, form: form.format(n),
    NAMES,
    st.sampled_from(
        ("<{}: 0.8>", "<{}:0,8>", "<{}:+1>", "< {} >", "<{}:>", "<{} :1>", "<{}", "<{}:1", "\u2039{}\u203a", "<{}x>", "<{}:0.8:1>")
    ),
)


@examples(400)
@given(st.lists(PLAIN | RIGHT | MISWRITTEN.map(lambda text: (text,)), max_size=6))
def test_a_handle_of_a_prompt_acts_or_is_an_error(pieces):
    parts = [piece if isinstance(piece, tuple) else (piece, None, None) for piece in pieces]
    prompt = " ".join(part[0] for part in parts)
    wrong = [part for part in parts if len(part) == 1]
    given_strengths = {(part[1], part[2]) for part in parts if len(part) == 3 and part[1] and ":" in part[0]}
    contradicts = len(given_strengths) != len({name for name, _ in given_strengths})
    try:
        found = KNOWN.read(prompt)
    except (ValueError, KeyError) as refusal:
        event("refused")
        assert wrong or contradicts, f"{prompt!r} is right and was refused: {refusal}"
        return
    event("read")
    assert not wrong and not contradicts, f"{prompt!r} was read in silence"
    wanted = {part[1]: 1.0 for part in parts if part[1]} | dict(given_strengths)
    assert found.strengths == wanted
