"""Faults at every instant of writing: each operation is killed, and told that the disk is full, at each point where it changes a file."""

import hashlib
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import EVERY, at_point, kill, no_room, read_only
from PIL import Image
from test_manage import filled, small

from cidm_ops.bank import files, manage
from cidm_ops.bank.archive import compress_bank, expand_into
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.export import export_concept, export_merged
from cidm_ops.bank.formats import write_picture
from cidm_ops.bank.lock import writing

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork and kill -9")
COURTESIES = (".lock.json", ".index.json")  # what may fail unsaid


def here(root: Path) -> Bank:
    return Bank(root / "bank")


def renaming_cut_short(root: Path) -> None:
    here(root).file("bee").rename(here(root).file("wasp"))
    (root / "bank" / ".training").mkdir()
    for place in ("bank/.bee.safetensors.1.partial", "bank/.training/.bee.safetensors.1.partial", "bank/..writable.7.partial"):
        (root / place).write_bytes(b"half")


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "add": lambda root: here(root).add(small("elk")),
    "add several": lambda root: here(root).add(small("elk"), small("fox")),
    "replace": lambda root: here(root).add(small("bee", 99)),
    "remove": lambda root: manage.remove(here(root), "bee"),
    "rename": lambda root: manage.rename(here(root), "bee", "wasp"),
    "move": lambda root: manage.move(here(root), "cow", 1),
    "merge": lambda root: manage.merge(here(root), Bank(root / "other"), "replace"),
    "describe": lambda root: manage.describe(here(root), "bee", {"author": "Me"}, Image.new("RGB", (9, 9))),
    "repair": lambda root: manage.repair(here(root)),
    "begin to learn": lambda root: here(root).check_writable(),
    "compress": lambda root: compress_bank(here(root)),
    "expand": lambda root: expand_into(root / "small.safetensors", root / "new"),
    "export": lambda root: export_concept(here(root).get("bee"), root / "out"),
    "merged export": lambda root: export_merged([here(root).get("bee")], [1.0], 2, root / "out" / "bee.safetensors"),
    "picture": lambda root: write_picture(Image.new("RGB", (9, 9), "red"), root / "out" / "t.png"),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A bank of three, another one, an archive of a fourth concept, and a picture that is there already."""
    root = tmp_path_factory.mktemp("template")
    filled(root / "bank", "ant", "bee", "cow")
    filled(root / "other", "elk", "bee")
    compress_bank(filled(root / "fly", "fly"), root / "small.safetensors")
    write_picture(Image.new("RGB", (9, 9)), root / "out" / "t.png")
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The order of writes is the same without waiting for the disk."""
    monkeypatch.setattr(files.os, "fsync", lambda _: None)


def fresh(template: Path, root: Path, name: str) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)
    if name == "repair":
        renaming_cut_short(root)
    for bank in ("bank", "other"):
        Bank(root / bank)  # an index of these files
    return root


def contents(root: Path) -> dict[str, str]:
    """Of the files that a person keeps, what is in them; "" for an empty one."""
    files = (f for f in root.rglob("*") if f.is_file() and not f.name.startswith((".", "index")))
    return {str(f.relative_to(root)): hashlib.sha256(data).hexdigest()[:12] if (data := f.read_bytes()) else "" for f in files}


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_point_it_leaves_all_that_was_and_is_done_by_doing_it_again(template, tmp_path, name):
    work, root = OPERATIONS[name], tmp_path / "x"
    status, count = at_point(fresh(template, root, name), work, 0, kill)
    assert status == 0 and int(count) >= 3, count
    before, after, order = contents(fresh(template, root, name)), {}, []
    work(root)
    after, order = contents(root), here(root).names
    for point in range(1, int(count) + 1):
        assert at_point(fresh(template, root, name), work, point, kill)[0] == signal.SIGKILL
        found = contents(root)
        assert all(found.values()), f"point {point}: a file is empty"
        for file in before.keys() & after.keys():
            assert file in found, f"point {point}: {file} is gone"
            assert found[file] in (before[file], after[file]) or name == "move", f"point {point}: {file} is neither old nor new"
        assert set(found) <= before.keys() | after.keys()
        now = manage.repair(here(root))
        assert not now.damaged and not any(manage.verify(now).values()) and not manage.leftovers(now)
        assert {"ant", "cow"} <= set(now.names) and len({"bee", "wasp"} & set(now.names)) == (1 if name != "remove" else len(now.names) - 2)
        if name not in ("remove", "rename") or "bee" in now.names:
            work(root)
        assert here(root).names == order
        assert contents(root) == after or name == "move", f"point {point}: doing it again ends elsewhere"
        assert not list(root.rglob("*.partial"))


@pytest.mark.parametrize("name", OPERATIONS)
def test_without_room_it_works_or_names_the_file_and_changes_nothing(template, tmp_path, name):
    work, root = OPERATIONS[name], tmp_path / "x"
    count = int(at_point(fresh(template, root, name), work, 0, kill)[1])
    for point in range(1, count + 1):
        before, met = contents(fresh(template, root, name)), tmp_path / "met"

        def act(what: str, met=met) -> None:
            met.write_text(what)
            no_room(what)

        status, said = at_point(root, work, point, act)
        where = f"point {point}, {met.read_text()}: {said}"
        if status:
            assert said.startswith(("OSError", "ValueError")) and str(root) in said and "No space left" in said, where
            assert not any(courtesy in met.read_text() for courtesy in COURTESIES), where
            if name not in ("add several", "repair", "move", "merge", "export"):  # those write several files, each of them whole
                assert contents(root) == before, where
        assert all(contents(root).values()) and not (root / "bank" / ".lock.json").exists(), where
        now = here(root)
        assert not now.damaged and not any(manage.verify(now).values()), where
        assert name == "repair" or not list(root.rglob("*.partial")), where


@pytest.mark.parametrize("size", [0, 1, 100, 1500])
def test_killed_in_the_middle_of_a_write_it_leaves_the_old_file(template, tmp_path, size):
    """The kernel ends a process at that byte of any file."""
    root = fresh(template, tmp_path / "x", "replace")
    before = contents(root)

    def work(root: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        here(root).file("bee").with_name("index.json").unlink()
        files.write_atomically(b"x" * 4000, root / "bank" / "bee.safetensors")

    assert at_point(root, work, 0, kill)[0] == signal.SIGXFSZ and contents(root) == before
    assert list(root.rglob("*.partial")), "the part is there"
    assert not manage.leftovers(manage.repair(here(root)))


def full(root: Path) -> None:
    """No file may grow: what the kernel says to every write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.parametrize("name", OPERATIONS)
def test_on_a_full_disk_what_makes_room_works_and_the_rest_says_to_make_room(template, tmp_path, name):
    root = fresh(template, tmp_path / "x", name)
    before = contents(root)

    def work(root: Path) -> None:
        full(root)
        OPERATIONS[name](root)

    status, said = at_point(root, work, 0, kill)
    if name == "remove":
        assert status == 0 and here(root).names == ["ant", "cow"]
    elif name == "begin to learn":
        assert status and "cannot be written to" in said and contents(root) == before
    else:
        assert status and "make room and start again" in said and str(root) in said and contents(root) == before
    assert not list(root.rglob("*.partial")) and not (root / "bank" / ".lock.json").exists()


@pytest.mark.parametrize("name", OPERATIONS)
def test_where_nothing_may_be_written_the_place_is_named_and_all_of_it_is_read(template, tmp_path, name):
    root = fresh(template, tmp_path / "x", name)
    before, names = contents(root), here(root).names
    status, said = at_point(root, OPERATIONS[name], EVERY, read_only)
    assert status and str(root) in said and "Read-only file system" in said and "\n" not in said, said
    assert contents(root) == before and here(root).names == names and not here(root).damaged


def test_on_a_full_disk_repair_makes_its_room(template, tmp_path):
    root = fresh(template, tmp_path / "x", "add")
    renaming_cut_short(root)
    here(root).file("wasp").rename(here(root).file("bee"))
    status, said = at_point(root, lambda root: (full(root), manage.repair(here(root))), 0, kill)
    assert status == 0, said
    assert not manage.leftovers(here(root)) and here(root).names == ["ant", "bee", "cow"]


def test_stale_parts_are_named_by_verify_cleared_by_repair_and_by_taking_a_task_up_again(template, tmp_path, capsys):
    from cidm_ops.__main__ import main

    for again in (False, True):
        root = fresh(template, tmp_path / "x", "add")
        renaming_cut_short(root)
        assert main(["bank", "verify", str(root / "bank")]) == 0
        assert capsys.readouterr().err.count("was left by a writer that was interrupted: `repair` clears it") == 3
        if again:
            here(root).check_writable()
        else:
            assert main(["bank", "repair", str(root / "bank")]) == 0
            assert "cleared .training/.bee.safetensors.1.partial\n" in capsys.readouterr().out
        assert not list(root.rglob("*.partial"))


def test_a_writer_whose_part_is_cleared_away_writes_it_again(tmp_path, monkeypatch):
    cleared = []

    def clearing(number: int) -> None:
        if len(cleared) < 3:
            cleared.append(files.parts(tmp_path))
            files.clear_parts(tmp_path)

    monkeypatch.setattr(files.os, "fsync", clearing)
    files.write_atomically(b"whole", tmp_path / "x")
    assert all(cleared) and (tmp_path / "x").read_bytes() == b"whole" and not files.parts(tmp_path)


def test_the_note_of_who_writes_is_never_left_empty(tmp_path):
    with writing(tmp_path):
        assert (tmp_path / ".lock.json").stat().st_size > 20
    assert not (tmp_path / ".lock.json").exists()


def test_an_export_replaces_exports_only(template, tmp_path):
    root = fresh(template, tmp_path / "x", "add")
    bank = here(root)
    first = [file.read_bytes() for file in export_concept(bank.get("bee"), root / "out")]
    assert first == [file.read_bytes() for file in export_concept(bank.get("bee"), root / "out")]
    before = contents(root)
    for attempt in (
        lambda: export_concept(bank.get("bee"), bank.folder),
        lambda: export_merged([bank.get("bee")], [1.0], 2, bank.file("ant")),
        lambda: compress_bank(bank, root / "out" / "t.png"),
        lambda: write_picture(Image.new("RGB", (9, 9)), bank.file("ant")),
    ):
        with pytest.raises(ValueError, match=r"(bee|ant|t)\.\w+ is (there and was made otherwise|no name of a picture)"):
            attempt()
    assert contents(root) == before


def test_a_file_of_others_in_a_bank_is_never_replaced_by_a_concept(tmp_path):
    bank = filled(tmp_path / "bank", "ant")
    lora = export_concept(bank.get("ant"), tmp_path)[0]
    shutil.copy(lora, bank.file("bee"))
    before = bank.file("bee").read_bytes()
    with pytest.raises(ValueError, match=r"bee\.safetensors: an ordinary safetensors file.*choose another name"):
        bank.add(small("bee"))
    assert bank.file("bee").read_bytes() == before
