"""Keeping a bank: each operation does what it says, changes nothing when it is refused, and survives a kill at any instant."""

import io
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from cidm_ops.bank import files, manage
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.bank.concept_file import load_concept, save_concept
from cidm_ops.bank.index import INDEX, read_index
from cidm_ops.bank.lock import writing
from cidm_ops.lowrank import LowRank

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"


def small(name: str, seed: int | None = None, **more) -> Concept:
    draw = torch.Generator().manual_seed(sum(name.encode()) if seed is None else seed)
    factors = {LAYER: LowRank(torch.randn(8, 2, generator=draw), torch.randn(2, 6, generator=draw))}
    tokens = {"clip_l": torch.randn(2, 3, 4, generator=draw)}
    return replace(
        Concept(
            name=name,
            class_word="dog",
            words=(f"<{name}.1>", f"<{name}.2>"),
            factors=factors,
            tokens=tokens,
            architecture="sd1-3x4",
            fingerprint="abc",
        ),
        **more,
    )


def filled(folder, *names: str) -> Bank:
    bank = Bank(folder)
    for name in names:
        bank = bank.add(small(name))
    return bank


def state(bank: Bank) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in bank.folder.glob("*.safetensors")}


def check_index(bank: Bank) -> None:
    """The index says what the files say."""
    index = read_index(bank.folder)
    assert set(index) == {f"{name}.safetensors" for name in bank.names}
    (bank.folder / INDEX).unlink()
    assert Bank(bank.folder).headers == bank.headers


@pytest.fixture
def bank(tmp_path) -> Bank:
    return filled(tmp_path / "bank", "ant", "bee", "cow", "doe")


def test_a_removed_concept_is_gone_and_the_others_keep_their_places(bank):
    bank = manage.remove(bank, "bee")
    assert bank.names == ["ant", "cow", "doe"] and [bank.headers[n]["task"] for n in bank.names] == [1, 3, 4]
    check_index(bank)
    with pytest.raises(KeyError, match="no concept 'bee'.*ant, cow, doe"):
        manage.remove(bank, "bee")


def test_a_damaged_concept_can_be_removed(bank):
    bank.file("bee").write_bytes(b"broken")
    assert manage.remove(Bank(bank.folder), "bee").damaged == {}


def test_a_renamed_concept_brings_its_words(bank):
    before = bank.get("bee")
    bank = manage.rename(bank, "bee", "wasp")
    after = bank.get("wasp")
    assert bank.names == ["ant", "wasp", "cow", "doe"] and after.words == ("<wasp.1>", "<wasp.2>") and after.name == "wasp"
    assert torch.equal(after.factors[LAYER].up, before.factors[LAYER].up) and after.task == before.task
    assert bank.read("a <wasp>").text == "a <wasp.1> <wasp.2>"
    check_index(bank)


@pytest.mark.parametrize("new, said", [("cow", "'cow' already"), ("a/b", "concept name"), ("x" * 10000, "concept name")])
def test_a_name_that_is_taken_or_none_is_refused(bank, new, said):
    before = state(bank)
    with pytest.raises(ValueError, match=said):
        manage.rename(bank, "bee", new)
    assert state(bank) == before


def test_a_word_that_is_taken_is_refused(bank):
    save_concept(small("cow", words=("<wasp.1>", "<cow.2>"), task=3), bank.file("cow"))
    before = state(bank)
    with pytest.raises(ValueError, match="<wasp.1> belongs to concept 'cow'"):
        manage.rename(bank, "bee", "wasp")
    assert state(bank) == before


def test_a_renaming_cut_short_leaves_a_concept_that_works_and_is_finished_by_repair(bank, monkeypatch):
    monkeypatch.setattr(manage, "save_concept", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        manage.rename(bank, "bee", "wasp")
    monkeypatch.undo()
    bank = Bank(bank.folder)
    assert bank.names == ["ant", "wasp", "cow", "doe"] and bank.get("wasp").name == "wasp"
    assert bank.read("a <wasp>").strengths == {"wasp": 1.0}
    assert manage.repair(bank).read("a <wasp>").text == "a <wasp.1> <wasp.2>"


@pytest.mark.parametrize(
    "name, place, order", [("doe", 1, "doe ant bee cow"), ("ant", 3, "bee cow ant doe"), ("bee", 2, "ant bee cow doe")]
)
def test_a_moved_concept_stands_at_its_place_and_only_what_changed_is_written(bank, name, place, order):
    before = {n: bank.file(n).stat().st_mtime_ns for n in bank.names}
    tasks = {n: h["task"] for n, h in bank.headers.items()}
    bank = manage.move(bank, name, place)
    assert bank.names == order.split()
    for n in bank.names:
        assert (bank.file(n).stat().st_mtime_ns == before[n]) == (bank.headers[n]["task"] == tasks[n])
    check_index(bank)


def test_concepts_that_share_a_task_number_can_be_put_in_order(bank):
    for name in bank.names:
        save_concept(replace(bank.get(name), task=7), bank.file(name))
    assert manage.move(bank, "doe", 2).names == ["ant", "doe", "bee", "cow"]


def test_a_place_that_is_not_there_is_refused(bank):
    for place in (0, 5):
        with pytest.raises(ValueError, match="expected 1 to 4"):
            manage.move(bank, "ant", place)


def test_merged_banks_keep_both_orders(bank, tmp_path):
    other = filled(tmp_path / "other", "fly", "elk")
    merged = manage.merge(bank, other)
    assert merged.names == ["ant", "bee", "cow", "doe", "fly", "elk"] and len(state(other)) == 2
    check_index(merged)


@pytest.mark.parametrize("existing, kept", [("skip", "old"), ("replace", "new")])
def test_a_name_that_both_banks_have(bank, tmp_path, existing, kept):
    other = filled(tmp_path / "other", "elk")
    other = other.add(small("bee", 99))
    with pytest.raises(ValueError, match="both banks have bee"):
        manage.merge(bank, other)
    assert bank.names == Bank(bank.folder).names
    merged = manage.merge(bank, other, existing)
    assert merged.names == ["ant", "bee", "cow", "doe", "elk"]
    expected = small("bee", 99) if kept == "new" else small("bee")
    assert torch.equal(merged.get("bee").factors[LAYER].up, expected.factors[LAYER].up)


@pytest.mark.parametrize("wrong", ["architecture", "word", "damaged", "itself", "existing"])
def test_a_merge_that_cannot_be_changes_nothing(bank, tmp_path, wrong):
    other, existing, said = filled(tmp_path / "other", "elk", "fly"), "skip", ""
    if wrong == "architecture":
        (other.folder / "elk.safetensors").unlink()
        save_concept(small("fly", architecture="sd1-16x768"), other.file("fly"))
        said = "sd1-16x768.*sd1-3x4"
    elif wrong == "word":
        save_concept(small("fly", words=("<fly.1>", "<bee.1>")), other.file("fly"))
        said = "<bee.1> belongs to concept 'bee'"
    elif wrong == "damaged":
        data = bytearray(other.file("fly").read_bytes())
        data[-1] ^= 255
        other.file("fly").write_bytes(data)
        said = r"fly\.safetensors"
    elif wrong == "itself":
        other, said = bank, "with itself"
    else:
        existing, said = "overwrite", "refuse, skip, replace"
    before = state(bank)
    with pytest.raises(ValueError, match=said):
        manage.merge(bank, Bank(other.folder), existing)
    assert state(bank) == before


def test_the_same_contents_under_two_names_are_found(bank):
    save_concept(replace(bank.get("bee"), name="wasp", words=("<wasp.1>", "<wasp.2>")), bank.file("wasp"))
    assert manage.duplicates(Bank(bank.folder)) == [["bee", "wasp"]]


def test_verify_reads_what_opening_does_not(bank):
    data = bytearray(bank.file("cow").read_bytes())
    data[-3] ^= 1
    bank.file("cow").write_bytes(data)
    bank.file("ant").write_bytes(b"")
    save_concept(small("doe", words=("<bee.1>", "<doe.2>"), task=4), bank.file("doe"))
    found = manage.verify(bank)
    assert found.pop("bee") == "" and "<bee.1> belongs to concept 'bee'" in found.pop("doe")
    assert set(found) == {"ant", "cow"} and all(f"{name}.safetensors" in wrong for name, wrong in found.items())


def test_repair_clears_what_is_stale_and_deletes_no_concept(bank):
    (bank.folder / INDEX).write_text('{"format": 1, "concepts": []}')
    (bank.folder / ".bee.safetensors.7.partial").write_bytes(b"half")
    bank.file("cow").write_bytes(b"broken")
    repaired = manage.repair(bank)
    assert repaired.names == ["ant", "bee", "doe"] and "cow.safetensors" in repaired.damaged["cow"]
    assert bank.file("cow").read_bytes() == b"broken" and not list(bank.folder.glob(".*.partial"))
    check_index(repaired)


def test_a_concept_is_described_and_shown(bank):
    bank = manage.describe(bank, "bee", {"author": "A. Person", "license": "CC0-1.0"}, Image.new("RGBA", (400, 100), "red"))
    bank = manage.describe(bank, "bee", {"description": "Buzzes.", "license": ""})
    bee = bank.get("bee")
    assert bee.about == {"author": "A. Person", "description": "Buzzes."}
    preview = Image.open(io.BytesIO(bee.preview))
    assert preview.format == "JPEG" and preview.size == (128, 32)
    assert bank.headers == Bank(bank.folder).headers and manage.verify(bank)["bee"] == ""
    with pytest.raises(ValueError, match="'artist'.*author, license, description"):
        manage.describe(bank, "bee", {"artist": "?"})


def test_a_second_writer_says_who_holds_the_lock(bank, monkeypatch):
    monkeypatch.setattr(manage, "writing", lambda folder: writing(folder, 0.1))
    before = state(bank)
    with writing(bank.folder), pytest.raises(TimeoutError, match=f"process {os.getpid()} .* 'bank'.*nothing was changed"):
        manage.remove(bank, "ant")
    assert state(bank) == before


def test_a_bank_that_cannot_be_written_to_says_what_to_do(bank):
    before = state(bank)
    (bank.folder / ".lock").unlink()
    (bank.folder / ".lock").mkdir()
    for attempt in (lambda: manage.remove(bank, "ant"), lambda: bank.add(small("elk"))):
        with pytest.raises(ValueError, match=r"bank folder \S+ cannot be written to \([^\[\]]+\): change that or use another$"):
            attempt()
    assert state(bank) == before
    (bank.folder.parent / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        Bank(bank.folder.parent / "file").add(small("elk"))


def test_what_fails_while_writing_is_told_as_it_is(bank):
    with pytest.raises(OSError, match="no more room"), writing(bank.folder):
        raise OSError("no more room")
    manage.remove(bank, "ant")


def child(work) -> int:
    """Run ``work`` over and over in a process of its own; returns its id."""
    process = os.fork()
    if process == 0:
        try:
            while True:
                work()
        finally:
            os._exit(1)
    return process


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_a_second_writer_waits(bank):
    with writing(bank.folder):
        process = child(lambda: (manage.remove(Bank(bank.folder), "ant"), os._exit(0)))
        time.sleep(0.3)
        assert Bank(bank.folder).names[0] == "ant"
    assert os.waitpid(process, 0)[1] == 0 and "ant" not in Bank(bank.folder).names


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_every_operation_can_be_killed_at_any_instant(bank, tmp_path):
    other = filled(tmp_path / "other", "elk", "fly")
    here = lambda: Bank(bank.folder)  # noqa: E731

    def work():
        manage.rename(here(), "bee", "wasp")
        manage.move(here(), "doe", 1)
        manage.merge(here(), other, "replace")
        manage.describe(here(), "cow", {"author": str(time.time())})
        manage.remove(here(), "elk")
        manage.rename(here(), "wasp", "bee")
        manage.move(here(), "doe", 4)

    contents = {name: manage.contents(bank.get(name)) for name in bank.names}
    for i in range(12):
        for name in ("wasp",) if "wasp" in here().names else ():
            manage.rename(here(), name, "bee")
        process = child(work)
        time.sleep(0.03 + 0.007 * i)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        now = manage.repair(here())
        assert not any(manage.verify(now).values()) and not now.damaged
        assert sorted("bee" if n == "wasp" else n for n in now.names if n not in ("elk", "fly")) == ["ant", "bee", "cow", "doe"]
        assert [n for n in now.names if n in ("ant", "cow")] == ["ant", "cow"]
        for name in now.names:
            if name in contents:
                assert manage.contents(now.get(name)) == contents[name]
        check_index(now)


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_two_processes_add_fifty_concepts_each(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", lambda _: None)  # for speed; the order of writes is the same
    processes = []
    for half in "ab":
        process = os.fork()
        if process == 0:
            code = 1
            try:
                for i in range(50):
                    Bank(tmp_path).add(small(f"{half}{i}"))
                code = 0
            finally:
                os._exit(code)
        processes.append(process)
    assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0]
    bank = Bank(tmp_path)
    assert len(bank.names) == 100 and not any(manage.verify(bank).values())
    assert sorted(header["task"] for header in bank.headers.values()) == list(range(1, 101))
    assert manage.contents(load_concept(bank.file("a7"))) == manage.contents(small("a7"))
    check_index(bank)
