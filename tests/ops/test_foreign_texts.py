"""What others wrote into their files is shown and never obeyed: control codes, giant and broken thumbnails, what is no file at all."""

import io
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_manage import filled, small

from cidm_ops.__main__ import main, refuse
from cidm_ops.bank import manage
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.index import INDEX
from cidm_ops.measure.cards import bank_table, concept_card
from cidm_ops.printable import one_line, printable

UP, TITLE, CLIPBOARD, RIGHT_TO_LEFT = "\x1b[1A\x1b[2K", "\x1b]0;TITLE\x07\x1b[2J", "\x1b]52;c;cm0gLXJm\x07", "\u202egnp.exe"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def png(width: int, height: int) -> bytes:
    """A PNG of black pixels of any size, made without laying it out in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + -(-width // 8))) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "green").save(data, "JPEG")
    return data.getvalue()


PREVIEWS = {
    "30000 x 30000": png(30000, 30000),
    "13000 x 13000": png(13000, 13000),
    "cut": jpeg()[:200],
    "text": b"hello",
    "starts a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n",
    "broken PNG": png(9, 9)[:30] + b"\xff" * 60,
}


def test_control_codes_of_a_file_never_reach_the_terminal(tmp_path, capsys):
    bank = filled(tmp_path / "bank", "ant")
    about = {"author": TITLE, "license": RIGHT_TO_LEFT, "description": f"two\nlines {CLIPBOARD}"}
    training = {f"k{UP}": f"v{UP}", "steps": 3}
    bank = bank.add(small("bee", class_word=f"dog{UP}", about=about, training=training, triggers=(f"hat{UP}",)))
    (bank.folder / f"x{TITLE}.safetensors").write_bytes(b"broken")
    for argv in (("list", bank.folder), ("show", bank.folder, "bee"), ("verify", bank.folder), ("repair", bank.folder)):
        main(["bank", *map(str, argv)])
        said = "".join(capsys.readouterr())
        assert not CONTROL.search(said.replace("\n", "")), (argv, said)
        assert "\\x1b" in said, "it is shown as an escape"
    bank_table(bank)
    concept_card(bank.get("bee"), bank.file("bee"))


def test_texts_are_printable_and_stay_readable():
    assert printable("a\tb\nc") == "a\tb\nc" and one_line(" two\n lines\t") == "two lines"
    assert printable(UP) == "\\x1b[1A\\x1b[2K" and printable("\x9b\u202e\ud800") == "\\x9b\\u202e\\ud800"
    assert printable("\xe9 \u72ac \U0001f415") == "\xe9 \u72ac \U0001f415"


def test_a_shortage_without_a_text_says_what_is_short(capsys):
    assert refuse(MemoryError()) == 2 and capsys.readouterr().err == "cidm: there is not enough memory\n"
    assert refuse(ValueError(f"x{UP}")) == 2 and "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", PREVIEWS)
def test_a_thumbnail_that_is_no_small_picture_takes_nothing_else_away(tmp_path, capsys, recwarn, kind):
    bank = filled(tmp_path / "bank", "ant").add(small("bee", preview=PREVIEWS[kind])).add(small("cow", preview=jpeg()))
    for argv in (("list", bank.folder), ("show", bank.folder, "bee")):
        assert main(["bank", *map(str, argv), "--picture", str(tmp_path / "t.png")]) == 0
        assert Image.open(tmp_path / "t.png").width > 300
    assert main(["bank", "verify", str(bank.folder)]) == 0
    err = capsys.readouterr().err
    assert "cidm: warning: bee: its thumbnail is not shown: it " in err and "cow" not in err and "Warning" not in err
    assert not [w for w in recwarn if "bomb" in str(w.message)]


def test_a_picture_that_cannot_be_a_thumbnail_is_named(tmp_path, capsys):
    bank = filled(tmp_path / "bank", "ant")
    before = bank.file("ant").read_bytes()
    for name, data in {"giant.png": PREVIEWS["30000 x 30000"], "text.png": b"hello", "none.png": None}.items():
        if data:
            (tmp_path / name).write_bytes(data)
        assert main(["bank", "describe", str(bank.folder), "ant", "--preview", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert name in err and err.count("\n") == 1
    assert bank.file("ant").read_bytes() == before
    Image.new("RGB", (6000, 4000), "red").save(tmp_path / "photo.jpg")
    assert main(["bank", "describe", str(bank.folder), "ant", "--preview", str(tmp_path / "photo.jpg")]) == 0
    assert Image.open(io.BytesIO(bank.get("ant").preview)).size == (128, 85)


@pytest.mark.skipif(os.name != "posix", reason="pipes and links")
def test_what_is_no_file_is_named_and_the_rest_stays_usable(tmp_path):
    bank = filled(tmp_path, "ant")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "nothing.safetensors").symlink_to(tmp_path / "gone")
    (tmp_path / "device.safetensors").symlink_to("/dev/zero")
    shutil.copy(bank.file("ant"), tmp_path / "my dog.safetensors")
    (tmp_path / INDEX).unlink()
    os.mkfifo(tmp_path / INDEX)
    bank = Bank(tmp_path)
    assert bank.names == ["ant"] and bank.get("ant").name == "ant"
    assert {name: what.split(": ")[1].split(",")[0] for name, what in bank.damaged.items()} == {
        "pipe": "no ordinary file",
        "folder": "no ordinary file",
        "nothing": "a link to a file that is not there",
        "device": "no ordinary file",
        "my dog": "no name of a concept",
    }
    assert all(f"{name}.safetensors" in what for name, what in bank.damaged.items())
    assert "my_dog" in manage.rename(bank, "my dog", "my_dog").names, "the name is mended by renaming"


def test_an_index_of_any_size_costs_no_memory(tmp_path):
    bank = filled(tmp_path, "ant")
    with open(tmp_path / INDEX, "wb") as f:
        f.truncate(1 << 36)  # 64 GB of nothing
    assert Bank(tmp_path).headers == bank.headers and (tmp_path / INDEX).stat().st_size < 10_000


def test_texts_that_a_terminal_has_no_letters_for_are_shown_as_escapes(tmp_path):
    filled(tmp_path / "bank", "ant").add(replace(small("bee"), class_word="\u72ac"))
    pack = Path(__file__).resolve().parents[2]
    for encoding in ("cp1252", "ascii"):
        command = [sys.executable, "-m", "cidm_ops", "bank", "list", str(tmp_path / "bank")]
        run = subprocess.run(command, cwd=pack, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True)
        assert run.returncode == 0 and b"\\u72ac" in run.stdout, run.stderr
