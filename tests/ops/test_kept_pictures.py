"""Pictures beside a concept in a bank: they follow it, stay private, and survive whatever interrupts a writer."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from test_manage import filled

from cidm_ops.__main__ import main
from cidm_ops.bank import manage, pictures
from cidm_ops.bank.archive import compress_bank
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.export import export_concept
from cidm_ops.bank.pictures import MOST, SIDE, keep_pictures, kept_pictures, say_pictures


def drawn(count, size=(40, 30)):
    return [Image.fromarray(np.full((size[1], size[0], 3), (40 * i + 20) % 256, np.uint8)) for i in range(count)]


@pytest.fixture
def bank(tmp_path):
    return filled(tmp_path / "bank", "ant", "bee")


def files(bank, name="ant"):
    place = bank.folder / "references" / name
    return sorted(file.name for file in place.iterdir()) if place.is_dir() else []


def test_they_come_back_as_they_were_kept(bank):
    mask = Image.new("L", (40, 30), 255)
    keep_pictures(bank, "ant", drawn(2), ["on the beach", "asleep"], [mask, None], "generated")
    one, two = kept_pictures(Bank(bank.folder), "ant")
    assert (one.caption, one.source, two.caption) == ("on the beach", "generated", "asleep")
    assert one.open().size == (40, 30) and one.open_mask().getextrema() == (255, 255) and two.open_mask() is None
    assert abs(int(np.asarray(two.open()).mean()) - 60) <= 1 and len(files(bank)) == 4
    about = json.loads((bank.folder / "references" / "ant" / "about.json").read_text())
    assert all(len(entry["sha256"]) == 64 for entry in about["pictures"]) and kept_pictures(bank, "bee") == []


def test_large_ones_are_made_smaller(bank):
    (kept,) = keep_pictures(bank, "ant", drawn(1, (3000, 1500)))
    assert kept.open().size == (SIDE, SIDE // 2)


def test_new_ones_take_the_place_of_those_that_were_kept_and_none_takes_them_away(bank):
    keep_pictures(bank, "ant", drawn(3))
    keep_pictures(bank, "ant", drawn(1, (20, 20)))
    assert [kept.open().size for kept in kept_pictures(bank, "ant")] == [(20, 20)] and len(files(bank)) == 2
    assert keep_pictures(bank, "ant", []) == [] and not (bank.folder / "references" / "ant").exists()


@pytest.mark.parametrize("instant", [1, 2, 3])
def test_a_writer_that_is_interrupted_leaves_those_of_before(bank, monkeypatch, instant):
    keep_pictures(bank, "ant", drawn(2), ["before", "before"])
    write, calls = pictures.write_atomically, []

    def interrupted(data, file):
        calls.append(file)
        if len(calls) == instant:
            raise OSError("the plug was pulled")
        write(data, file)

    monkeypatch.setattr(pictures, "write_atomically", interrupted)
    with pytest.raises(OSError, match="plug"):
        keep_pictures(bank, "ant", drawn(2, (20, 20)), ["after", "after"])
    monkeypatch.undo()
    assert [(kept.caption, kept.open().size) for kept in kept_pictures(bank, "ant")] == [("before", (40, 30))] * 2
    keep_pictures(bank, "ant", drawn(1))
    assert len(files(bank)) == 2  # what nobody counted is gone


def test_they_follow_their_concept(bank, tmp_path):
    keep_pictures(bank, "ant", drawn(2), ["one", "two"])
    bank = manage.rename(bank, "ant", "elk")
    assert [kept.caption for kept in kept_pictures(bank, "elk")] == ["one", "two"] and not files(bank, "ant")
    other = manage.merge(filled(tmp_path / "other", "cow"), bank)
    assert [kept.caption for kept in kept_pictures(other, "elk")] == ["one", "two"] and files(other, "elk") == files(bank, "elk")
    bank = manage.remove(bank, "elk")
    assert not (bank.folder / "references" / "elk").exists() and kept_pictures(other, "elk")


def test_a_renaming_that_was_cut_short_is_finished(bank):
    keep_pictures(bank, "ant", drawn(1), ["one"])
    bank.file("ant").rename(bank.folder / "elk.safetensors")
    bank = manage.repair(Bank(bank.folder))
    assert [kept.caption for kept in kept_pictures(bank, "elk")] == ["one"]


def said_by(file):
    """What a file says, bit for bit: safetensors writes metadata in any order."""
    with safe_open(file, "np") as f:
        return f.metadata(), {key: f.get_tensor(key).tobytes() for key in sorted(f.keys())}


def test_they_stay_private(bank, tmp_path):
    """Neither the file of a concept, nor an export, nor a compressed bank changes by what is kept."""

    def given_out(folder):
        own = Bank(bank.folder)
        return [said_by(file) for file in (compress_bank(own, folder / "all.safetensors")[0], *export_concept(own.get("ant"), folder))]

    before, own = given_out(tmp_path / "a"), bank.file("ant").read_bytes()
    keep_pictures(bank, "ant", drawn(2))
    assert given_out(tmp_path / "b") == before and bank.file("ant").read_bytes() == own


def test_pictures_of_nobody_are_named(bank):
    keep_pictures(bank, "ant", drawn(1))
    (bank.folder / "references" / "ant").rename(bank.folder / "references" / "yak")
    assert "references/yak has pictures of no concept of this bank: remove that folder" in manage.remarks(bank)


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (dict(pictures=drawn(MOST + 1)), f"{MOST + 1} pictures of <ant>: at most {MOST} are kept"),
        (dict(pictures=drawn(2), captions=["one"]), "1 captions for 2 pictures of <ant>: give one for each, or none"),
        (dict(pictures=drawn(1), source="painting"), "source 'painting': expected one of photo, generated"),
    ],
)
def test_what_cannot_be_is_named(bank, how, error):
    with pytest.raises(ValueError, match=error):
        keep_pictures(bank, "ant", **how)
    assert not (bank.folder / "references").exists()


def test_a_concept_that_is_not_there_is_named(bank):
    with pytest.raises(KeyError, match="no concept 'yak'"):
        keep_pictures(bank, "yak", drawn(1))


@pytest.mark.parametrize("file", ["../bee.safetensors", "/etc/hosts", "..", "", "a\\b.jpg"])
def test_a_list_that_leads_elsewhere_is_refused(bank, file):
    keep_pictures(bank, "ant", drawn(1))
    (bank.folder / "references" / "ant" / "about.json").write_text(json.dumps({"pictures": [{"file": file}]}))
    with pytest.raises(ValueError, match="does not say which pictures are kept"):
        kept_pictures(bank, "ant")


def test_a_prompt_names_the_pictures_that_a_model_gets(bank):
    said = say_pictures(bank, "A photo of a <ant> beside <bee:0.5>, and a cat", {"ant": 1, "bee": 2})
    assert said == "A photo of the dog of picture 1 beside the dog of pictures 2 and 3, and a cat"
    assert say_pictures(bank, "a <ant> and a <bee>", {"bee": 1}) == "a dog and the dog of picture 1"


def test_the_command_line_keeps_and_lists_them(bank, tmp_path, capsys):
    drawn(1)[0].save(tmp_path / "one.png")
    given = ["bank", "pictures", str(bank.folder), "ant"]
    assert main([*given, "--keep", str(tmp_path / "one.png"), "--caption", "on the beach"]) == 0
    assert "photo  on the beach" in capsys.readouterr().out
    assert main([*given, "--none"]) == 0 and not capsys.readouterr().out
    (tmp_path / "two.png").write_text("no picture")
    assert main([*given, "--keep", str(tmp_path / "two.png")]) == 2 and "two.png" in capsys.readouterr().err
