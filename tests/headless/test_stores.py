"""A bank at an address keeps its guarantees, or is refused with the reason; the clocks of machines need not agree."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cluster import RECIPE, files_in, photos, tasks  # noqa: F401
from test_training import dataset, task_of

from cidm_ops.bank.bank import Bank
from cidm_ops.cluster.board import ASIDE, FOUND, LEARNED, Board
from cidm_ops.cluster.tasks import read_tasks
from cidm_ops.cluster.train import Wave
from cidm_ops.cluster.worker import DONE, HERE, REFUSED, Answer, Terms, Worker
from cidm_ops.engines.diffusers import load
from cidm_ops.training.checkpoint import checkpoint_file
from cidm_ops.training.methods import configure
from cidm_ops.training.trainer import Trainer

fsspec = pytest.importorskip("fsspec", reason="banks at addresses need fsspec (pip install 'cidm[cluster]')")

from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

from cidm_ops.cluster import store as stores  # noqa: E402
from cidm_ops.cluster.store import StoreCopy, StoreLock, fetch, held_store, opened  # noqa: E402

LEASE = 0.4


@pytest.fixture
def address(request) -> str:
    """A new place in the memory of this process, which is a store as s3 is."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    yield f"memory://{name}/bank"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="module")
def backbone(tiny_sd1):
    return load(tiny_sd1)


@pytest.fixture(scope="module")
def concepts(backbone):
    recipe = configure("cidm", steps=1)
    return [Trainer(backbone, dataset(), task_of(recipe, name)).concept() for name in ("rex", "tom")]


def test_what_is_added_is_there_whole_for_every_copy(address, concepts, tmp_path):
    with held_store(address, tmp_path / "mine", LEASE) as bank:
        bank.add(["rex"], [concepts[0]])
        other = StoreCopy(address, tmp_path / "other")
        assert Bank(other.pull()).names == ["rex"]
        bank.add(["tom"], [concepts[1]])
        assert Bank(other.pull()).names == ["rex", "tom"]
    assert files_in(tmp_path / "mine") == files_in(tmp_path / "other")
    system, root = opened(address)
    assert not [path for path in system.find(root) if "index" in path], "the index is only ever a machine's own"


def test_a_copy_follows_the_store(address, concepts, tmp_path):
    with held_store(address, tmp_path / "mine", LEASE) as bank:
        bank.add(["rex"], [concepts[0]])
        bank.add(["tom"], [concepts[1]])
    copy = StoreCopy(address, tmp_path / "copy")
    copy.pull()
    before = (tmp_path / "copy" / "tom.safetensors").stat().st_mtime_ns
    with held_store(address, tmp_path / "mine", LEASE) as bank:
        bank.add(["rex"], [replace(concepts[0], class_word="wolf")])
    assert Bank(copy.pull()).get("rex").class_word == "wolf"
    assert (tmp_path / "copy" / "tom.safetensors").stat().st_mtime_ns == before, "what is the same is not copied again"
    copy.system.rm_file(f"{copy.root}/rex.safetensors")
    assert Bank(copy.pull()).names == ["tom"]


def test_one_writer_at_a_time(address, tmp_path):
    other = held_store(address, tmp_path / "other", LEASE)
    said = "works on the bank at this address: nothing was changed; wait for it, or stop it"
    with held_store(address, tmp_path / "mine", LEASE), pytest.raises(TimeoutError, match=said), other:
        pass
    with held_store(address, tmp_path / "other", LEASE):
        pass
    system, root = opened(address)
    assert len(system.ls(f"{root}/.lock")) == 1, "old locks are cleared"


def test_a_lock_whose_holder_is_gone_is_taken_after_the_lease_and_the_late_one_writes_nothing(address, concepts, tmp_path):
    """The holder's machine sleeps, whatever its clock says; when it wakes another one has the bank."""
    with held_store(address, tmp_path / "mine", LEASE) as bank:
        bank.lock.ended.set()  # no sign of life from here on
        began = time.monotonic()
        with held_store(address, tmp_path / "other", LEASE) as other:
            assert time.monotonic() - began >= LEASE
            with pytest.raises(TimeoutError, match="holds the bank at this address by now: nothing more is written"):
                bank.add(["rex"], [concepts[0]])
            other.add(["tom"], [concepts[1]])
    assert Bank(StoreCopy(address, tmp_path / "copy").pull()).names == ["tom"]


def test_of_many_who_come_at_once_one_gets_the_lock(address):
    system, root = opened(address)
    locks, got = [StoreLock(system, root, LEASE) for _ in range(8)], []

    def take(lock):
        try:
            lock.acquire()
            got.append(lock)
        except TimeoutError:
            pass

    threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    got[0].release()


class Overwriting(MemoryFileSystem):
    """A store of a kind that does not know exclusive creation."""

    store: dict = {}
    pseudo_dirs = [""]

    def pipe_file(self, path, value, mode="overwrite", **more):
        super().pipe_file(path, value)


def test_stores_that_cannot_keep_a_bank_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder: give its path"), held_store(f"file://{tmp_path}/bank"):
        pass
    with pytest.raises(ValueError, match="a store of the kind .* writes files in place, so that others could read half of one"):
        stores.check_whole(fsspec.filesystem("dir", path=str(tmp_path), target_protocol="file"), "dir://bank")
    with pytest.raises(ValueError, match="does not create a file only where there is none"):
        StoreLock(Overwriting(), "/bank").probe("odd://bank")
    with pytest.raises(ValueError, match="nosuch://bank cannot be opened"):
        opened("nosuch://bank")


def test_pictures_are_fetched_with_what_lies_beside_them(address, tmp_path):
    system, root = opened(address)
    for name in ("rex/0.png", "rex/0.txt", "rex/masks/0.png"):
        system.pipe_file(f"{root}/{name}", name.encode())
    folder = fetch(f"{address}/rex", tmp_path / "room")
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} == {"0.png", "0.txt", "masks/0.png"}
    with pytest.raises(FileNotFoundError, match="there are no files: check the address"):
        fetch(f"{address}/tom", tmp_path / "other")


class Here:
    """Workers in this process, one after another: what Ray does beside starting processes."""

    def __init__(self, terms: Terms):
        self.worker = Worker(terms)
        self.worker.ready()

    def work(self, pieces):
        for piece in pieces:
            yield piece, self.worker.do(piece.what, *piece.arguments)


def test_tasks_are_learned_from_and_into_addresses_and_go_on_there(address, photos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system, root = opened(address)
    for name in ("dog", "cat"):
        for file in (photos / name).iterdir():
            system.pipe_file(f"{root}-photos/{name}/{file.name}", file.read_bytes())
    about = [{"images": f"{address}-photos/{name}", "class_word": name, "steps": 3, "set": RECIPE} for name in ("dog", "cat")]
    lines, broken, _ = read_tasks("\n".join(map(json.dumps, about)), Path())
    assert not broken
    pool, states = Here(Terms("doodle")), []
    for _ in range(2):
        board = Board([line.name for line in lines])
        with held_store(address, tmp_path / "mine", LEASE) as bank:
            for line in lines:
                Wave([line], address, bank, board, []).learn(pool, (1.0, 0.0, 0.0))
        states.append([row.state for row in board.rows.values()])
    assert states == [[LEARNED] * 2, [FOUND] * 2]
    assert Bank(StoreCopy(address, tmp_path / "copy").pull()).names == ["dog", "cat"]
    assert not system.find(f"{root}/.training"), "no state is left of runs that are done"


def test_a_run_that_ended_goes_on_on_another_machine(address, photos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    lines, _, _ = read_tasks(tasks(tmp_path / "t.jsonl", photos, ["dog"], steps=4).read_text(), Path())
    worker = Worker(Terms("doodle"))
    worker.ready()
    worker.stopping = True  # ends after its first step
    assert worker.do("learn", address, lines[0], []).kind == "stopped"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    worker.stopping = False
    steps = []
    monkeypatch.setattr(Trainer, "check_same", lambda run: steps.append(run.step))
    answer = worker.do("learn", address, lines[0], [])
    assert answer.kind == DONE and steps == [1, 4], "it went on behind the step that was kept"
    copy = StoreCopy(address, name="dog")
    assert checkpoint_file(Bank(copy.pull()), "dog").exists(), "until it is written the state of the finished run stays"


def test_what_cannot_be_is_refused_and_what_lies_here_is_said_to(photos, tmp_path):  # noqa: F811
    file = tasks(tmp_path / "t.jsonl", photos, ["dog"])
    (line,), _, _ = read_tasks(file.read_text(), tmp_path)
    worker, bank = Worker(Terms("doodle")), str(tmp_path / "bank")
    worker.ready()
    gone = worker.do("learn", bank, replace(line, images=str(tmp_path / "gone")), [])
    assert gone.kind == HERE and "gone" in gone.reason
    wrong = worker.do("learn", bank, replace(line, set=["rank=400"]), [])
    assert wrong.kind == REFUSED and wrong.reason.startswith("rank 400: ")
    board = Board(["dog"])
    Wave([line], "", None, board, []).take(SimpleNamespace(name="dog"), wrong)
    assert board.rows["dog"].state == ASIDE
    with pytest.raises(RuntimeError, match="nowhere"):
        Worker(Terms(str(tmp_path / "nowhere"))).ready()


def test_concepts_that_are_done_wait_for_each_other_while_writing_takes_long():
    written, lines = [], [SimpleNamespace(name=name) for name in "abcde"]

    class Slow:
        def add(self, names, concepts):
            time.sleep(0.1)
            written.append(names)

    board = Board([*"abcde"])
    wave = Wave(lines, "", Slow(), board, [])
    answers = {name: Answer(DONE, SimpleNamespace(concepts=[name], losses=[0.1])) for name in "acdeb"}
    for name, answer in answers.items():
        wave.take(SimpleNamespace(name=name), answer)
    assert written == [["a"]], "the others would be written too often, and behind b"
    wave.write()
    assert written == [["a"], [*"bcde"]] and board.count(LEARNED) == 5
