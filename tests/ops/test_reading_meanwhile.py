"""Reading a bank while others write: what was renamed or removed is not damaged, and what was written anew is read anew."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from test_manage import filled, small

from cidm_ops.bank import bank as bank_file
from cidm_ops.bank import files, manage
from cidm_ops.bank import index as index_file
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept_file import load_concept, save_concept
from cidm_ops.bank.header import read_header
from cidm_ops.measure.cards import bank_table


def test_a_concept_that_went_since_the_bank_was_opened_is_not_called_damaged(tmp_path):
    opened = filled(tmp_path, "ant", "bee", "cow")
    manage.rename(manage.remove(opened, "ant"), "bee", "wasp")
    for name in ("ant", "bee"):
        with pytest.raises(KeyError, match=f"'{name}' was renamed or removed since .* was opened: open it again"):
            opened.get(name)
    assert set(manage.verify(opened)) == {"wasp", "cow"} and not any(manage.verify(opened).values())
    bank_table(opened)


def test_a_file_that_goes_while_its_header_is_read_is_looked_for_again(tmp_path, monkeypatch):
    bank = filled(tmp_path, "ant", "bee", "cow")
    (tmp_path / "index.json").unlink()
    moves = [("ant", "elk"), ("bee", "fly")]

    def meanwhile(file):
        if moves and moves[0][0] == file.stem:
            old, new = moves.pop(0)
            bank.file(old).rename(bank.file(new))
        return read_header(file)

    monkeypatch.setattr(index_file, "read_header", meanwhile)
    opened = Bank(tmp_path)
    assert sorted(opened.names) == (["cow", "elk", "fly"] if not moves else ["bee", "cow", "elk"]) and not opened.damaged


def test_a_file_written_anew_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    bank, reads = filled(tmp_path, "ant"), []

    def torn(file):
        reads.append(file)
        if len(reads) == 1:
            save_concept(replace(small("ant", 9), class_word="cat"), file)
            raise ValueError("its contents are not what was written")
        return load_concept(file)

    monkeypatch.setattr(bank_file, "load_concept", torn)
    assert bank.get("ant").class_word == "cat" and len(reads) == 2


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_readers_never_call_a_bank_damaged_that_another_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", lambda _: None)  # for speed; the order of writes is the same
    filled(tmp_path, "ant", "bee", "cow")
    process = os.fork()
    if process == 0:
        try:
            while True:
                for old, new in (("bee", "wasp"), ("wasp", "bee")):
                    manage.rename(Bank(tmp_path), old, new)
                Bank(tmp_path).add(small("elk"))
                manage.move(Bank(tmp_path), "elk", 1)
                manage.remove(Bank(tmp_path), "elk")
        finally:
            os._exit(1)
    said, reads = [], 0

    def read() -> None:
        nonlocal reads
        end = time.monotonic() + 4
        while time.monotonic() < end:
            bank = Bank(tmp_path)
            said.extend(bank.damaged.values())
            said.extend(["one is missing"] if not {"ant", "cow"} <= set(bank.names) else [])
            for name in bank.names:
                try:
                    bank.get(name)
                except KeyError as error:
                    said.extend([] if "renamed or removed" in str(error) else [str(error)])
                except ValueError as error:
                    said.append(str(error))
            said.extend(wrong for wrong in manage.verify(bank).values() if wrong)
            reads += 1

    def read_on() -> None:
        try:
            read()
        except BaseException as error:
            said.append(repr(error))

    readers = [threading.Thread(target=read_on) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert said == [] and reads > 3
