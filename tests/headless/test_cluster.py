"""Many concepts on a Ray cluster of two nodes: the same files as one after another on one machine, whoever dies."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from cidm_ops.__main__ import main
from cidm_ops.bank import manage
from cidm_ops.bank.bank import TRAINING, Bank
from cidm_ops.bank.lock import writing
from cidm_ops.cluster import versions
from cidm_ops.doodle.concepts import CONCEPTS, examples
from cidm_ops.training.stops import ENDING, keep_handlers

PACK = Path(__file__).resolve().parents[2]
STEPS, LONG = 4, 100  # the state of a run is kept at step 50
RECIPE = {"lr": 1e-2, "lr_tokens": 1e-2, "norm_stop": 0.2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """Two nodes of Ray's own test cluster on this machine, a core each."""
    ray = pytest.importorskip("ray", reason="NO CLUSTER TEST RAN: Ray is not installed (pip install 'cidm[cluster]')")
    if os.name != "posix":
        pytest.skip("NO CLUSTER TEST RAN: Ray's test cluster is tried on Linux and macOS")
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    try:
        with keep_handlers():  # its head node takes SIGTERM for good, from the tests that come after these too
            nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
            nodes.add_node(**small)
            nodes.wait_for_nodes()
    except Exception as error:
        pytest.skip(f"NO CLUSTER TEST RAN: Ray cannot start here ({type(error).__name__}: {str(error)[:200]})")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(autouse=True)
def signals_are_handled_as_before() -> Iterator[None]:
    """Ray takes SIGTERM in the process that joins it: whoever joined has it back."""
    before = [signal.getsignal(number) for number in ENDING]
    yield
    assert [signal.getsignal(number) for number in ENDING] == before


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of three pictures for each of Doodle's ten concepts."""
    root = tmp_path_factory.mktemp("photos")
    for concept in CONCEPTS.values():
        (root / concept.name).mkdir()
        for number, shown in enumerate(examples(concept, 3)):
            Image.fromarray(shown.picture).save(root / concept.name / f"{number}.png")
            (root / concept.name / f"{number}.txt").write_text(shown.caption)
    return root


@pytest.fixture(scope="module")
def one_by_one(photos, tmp_path_factory) -> dict[str, str]:
    """The files that `cidm train` makes of the ten concepts, one after another, on one thread as every worker has."""
    bank, threads = tmp_path_factory.mktemp("one-by-one"), torch.get_num_threads()
    torch.set_num_threads(1)
    for concept in CONCEPTS.values():
        options = [word for name, value in RECIPE.items() for word in ("--set", f"{name}={value}")]
        style = [] if concept.look else ["--style"]
        where = ["--images", str(photos / concept.name), "--bank", str(bank)]
        assert main(["train", *where, "--class-word", concept.class_word, "--steps", str(STEPS), *options, *style]) == 0
    torch.set_num_threads(threads)
    return files_in(bank)


def files_in(bank: Path) -> dict[str, str]:
    return {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(bank.glob("*.safetensors"))}


def tasks(file: Path, photos: Path, names=tuple(CONCEPTS), steps: int = STEPS, **more) -> Path:
    """A file of tasks for concepts of Doodle."""
    lines = []
    for concept in (CONCEPTS[name] for name in names):
        about = {"images": str(photos / concept.name), "class_word": concept.class_word, "style": not concept.look}
        lines.append(json.dumps({**about, "steps": steps, "set": RECIPE, **more}))
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def command(cluster, file: Path, bank: object, *more: object) -> list[str]:
    return ["cluster", "train", str(file), "--bank", str(bank), "--address", cluster.address, *map(str, more)]


def test_ten_concepts_are_the_files_of_one_after_another(cluster, photos, one_by_one, tmp_path, capsys):
    file, bank = tasks(tmp_path / "ten.jsonl", photos), tmp_path / "bank"
    assert main(command(cluster, file, bank, "--progress", tmp_path / "state.json")) == 0
    assert files_in(bank) == one_by_one
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["done"] == 10 and state["per_hour"] > 0 and state["tasks"]["dog"]["step"] == STEPS
    assert not list((bank / TRAINING).glob("*.safetensors")), "no state is left of runs that are done"


def workers_of(cluster) -> list[psutil.Process]:
    """The workers of this test's own cluster."""
    found = []
    for node in cluster.list_all_nodes():
        for known in node.all_processes.get("raylet", []):
            with_children = psutil.Process(known.process.pid).children(recursive=True)
            found += [process for process in with_children if "Worker" in " ".join(named(process))]
    return found


def named(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Killing(threading.Thread):
    """Ends a worker with kill -9 each time that ``when`` says so of the file that tells how far everything is."""

    def __init__(self, cluster, progress: Path, whens: list):
        super().__init__(daemon=True)
        self.cluster, self.progress, self.whens, self.killed = cluster, progress, whens, 0

    def run(self) -> None:
        while self.whens:
            time.sleep(0.1)
            if self.progress.exists() and self.whens[0](json.loads(self.progress.read_text())):
                for process in workers_of(self.cluster)[:1]:
                    process.send_signal(signal.SIGKILL)
                    self.killed += 1
                    self.whens.pop(0)


def step_of(state: dict, name: str) -> int:
    return state["tasks"][name]["step"]


@pytest.fixture(scope="module")
def long_one(photos, tmp_path_factory) -> str:
    """What `cidm train` makes of a run that is long enough to have kept its state on the way."""
    bank = tmp_path_factory.mktemp("long") / "bank"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = [word for name, value in RECIPE.items() for word in ("--set", f"{name}={value}")]
    assert main(["train", "--images", str(photos / "dog"), "--class-word", "dog", "--bank", str(bank), "--steps", str(LONG), *options]) == 0
    torch.set_num_threads(threads)
    return files_in(bank)["dog"]


def as_from_a_terminal() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_whoever_ends_the_same_command_again_ends_with_the_same_file(cluster, photos, long_one, tmp_path):
    """The command by Ctrl-C, and by kill -9 as when its machine fails; then a worker by kill -9, which is replaced."""
    file, bank, progress = tasks(tmp_path / "t.jsonl", photos, ["dog"], steps=LONG), tmp_path / "bank", tmp_path / "state.json"
    argv = command(cluster, file, bank, "--progress", progress)
    for number, until in ((signal.SIGINT, 10), (signal.SIGKILL, 52)):
        progress.unlink(missing_ok=True)
        driver = subprocess.Popen(
            [sys.executable, "-m", "cidm_ops", *argv], cwd=PACK, stderr=subprocess.PIPE, text=True, preexec_fn=as_from_a_terminal
        )
        while not (progress.exists() and step_of(json.loads(progress.read_text()), "dog") >= until):
            assert driver.poll() is None, driver.stderr.read()
            time.sleep(0.1)
        driver.send_signal(number)
        said = driver.communicate(timeout=60)[1]
        if number == signal.SIGINT:
            assert driver.returncode == 2 and "cidm: stopped; what was finished before is on disk" in said
        assert files_in(bank) == {} and (bank / TRAINING / "dog.safetensors").exists()
    progress.unlink()
    killing = Killing(cluster, progress, [lambda state: step_of(state, "dog") > 50])
    killing.start()
    assert main(argv) == 0
    assert killing.killed == 1 and files_in(bank) == {"dog": long_one}


def test_waves_are_learned_apart_from_earlier_ones_and_the_same_by_any_number_of_workers(cluster, photos, tmp_path, capsys):
    names, banks = ["dog", "cat", "bear"], [tmp_path / "one", tmp_path / "two"]
    file = tasks(tmp_path / "t.jsonl", photos, names)
    for workers, bank in enumerate(banks, 1):
        assert main(command(cluster, file, bank, "--width", 2, "--workers", workers)) == 0
    assert files_in(banks[0]) == files_in(banks[1])
    bank = Bank(banks[0])
    assert bank.names == names and set(manage.verify(bank).values()) == {""}
    assert [bank.headers[name]["training"].get("beside") for name in names] == [["cat"], ["dog"], None]
    capsys.readouterr()
    assert main(command(cluster, file, banks[0], "--width", 3)) == 0, "what is learned stays, in whichever waves"
    assert files_in(banks[0]) == files_in(banks[1]) and "3 of 3 done (3 were there)" in capsys.readouterr().err


def test_what_cannot_be_learned_is_set_aside_and_named_and_the_rest_is_learned(cluster, photos, tmp_path, capsys):
    file = tasks(tmp_path / "t.jsonl", photos, ["dog", "cat", "bear"])
    lines = file.read_text().splitlines()
    lines[1] = lines[1].replace(str(photos / "cat"), str(tmp_path / "nowhere" / "cat"))
    lines[2] = lines[2].replace('"steps": 4', '"steps": 4, "rank": 400')
    file.write_text("\n".join([*lines, "{"]))
    assert main(command(cluster, file, tmp_path / "bank")) == 2
    assert "t.jsonl, line 4: no JSON" in capsys.readouterr().err and not (tmp_path / "bank").exists()
    assert main(command(cluster, file, tmp_path / "bank", "--skip-broken", "--width", 3, "--tries", 2)) == 2
    said = capsys.readouterr().err.splitlines()
    assert (
        said[0] == "cidm: warning: line 4: no JSON (Expecting property name enclosed in double quotes): expected one object a line, such "
        "as {'images': 'rex', 'class_word': 'dog'}; it is skipped"
    )
    assert said[-1].startswith("cidm: 2 of 3 tasks were set aside, the others are in the bank: <cat> of line 2: after 2 tries: ")
    assert "nowhere" in said[-1] and "<bear> of line 3: rank 400: " in said[-1]
    assert Bank(tmp_path / "bank").names == ["dog"]


def test_a_second_cluster_on_a_bank_is_refused(cluster, photos, tmp_path, capsys):
    with writing(tmp_path / "bank", lock=".cluster"):
        assert main(command(cluster, tasks(tmp_path / "t.jsonl", photos, ["dog"]), tmp_path / "bank")) == 2
    assert f"process {os.getpid()} on " in capsys.readouterr().err


@pytest.mark.parametrize("what", ["versions", "base"])
def test_machines_that_will_not_do_are_named(cluster, photos, tmp_path, capsys, monkeypatch, what):
    """Of other versions of the package, and without the file of the base."""
    more = []
    if what == "versions":
        other = {**versions.versions_here(), "cidm": "another"}
        monkeypatch.setattr(versions, "versions_here", lambda: other)
    else:
        more = ["--base", "nowhere.safetensors"]
    assert main(command(cluster, tasks(tmp_path / "t.jsonl", photos, ["dog"]), tmp_path / "bank", "--tries", 1, *more)) == 2
    said = capsys.readouterr().err
    assert "no worker could begin: " in said
    assert ("instead of another: install the same on every machine" if what == "versions" else "nowhere.safetensors") in said


def test_without_a_cluster_it_is_said(photos, tmp_path, capsys):
    pytest.importorskip("ray")
    file = tasks(tmp_path / "t.jsonl", photos, ["dog"])
    assert main(["cluster", "train", str(file), "--bank", str(tmp_path / "bank"), "--address", "127.0.0.1:1"]) == 2
    assert "Ray cannot be reached at 127.0.0.1:1" in capsys.readouterr().err


def test_a_piece_that_failed_on_a_machine_goes_to_another(cluster):
    from cidm_ops.cluster.pool import Hand, Pool
    from cidm_ops.cluster.worker import Piece

    class Noting(Pool):
        given: list = []

        def give(self, piece, hand):
            self.waiting.remove(piece)
            hand.piece = piece
            self.given.append((piece.name, hand.machine))

    pool = Noting(None, 2, 3)
    needs = (1.0, 0.0, 0.0)
    pool.hands = [Hand(None, needs, None, "a"), Hand(None, needs, None, "b")]
    pool.waiting.append(Piece("x", "learn", (), needs, failed_on=["a"]))
    pool.assign()
    assert pool.given == [("x", "b")]
    pool.hands = [Hand(None, needs, None, "a")]
    pool.waiting.append(Piece("y", "learn", (), needs, failed_on=["a"]))
    pool.assign()
    assert pool.given[1:] == [("y", "a")], "where there is no other"


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder but what is of one moment: locks and the index of a bank."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".") and file.name != "index.json"]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_an_evaluation_by_pieces_has_the_files_of_one_machine(cluster, tmp_path, capsys):
    ten = PACK / "cidm_ops" / "doodle" / "ten"
    (tmp_path / "prompts.txt").write_text("a <TOK> in the snow\na painting of a <TOK>\n")
    options = ["--bank", str(ten), "--concepts", "dog", "cat", "--prompts", str(tmp_path / "prompts.txt")]
    options += ["--samples", "3", "--batch", "2", "--steps", "2"]
    progress = tmp_path / "state.json"
    killing = Killing(cluster, progress, [lambda state: state["running"] > 0])
    killing.start()
    spread = ["--address", cluster.address, "--progress", str(progress)]
    assert main(["cluster", "evaluate", *options, "--out", str(tmp_path / "spread" / "out"), *spread]) == 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["evaluate", *options, "--out", str(tmp_path / "alone" / "out")]) == 0
    torch.set_num_threads(threads)
    mine, alone = contents(tmp_path / "spread"), contents(tmp_path / "alone")
    assert mine == alone and len(alone) >= 12 + 2 + 4 and killing.killed == 1


@pytest.mark.slow
def test_a_benchmark_by_pieces_has_the_files_of_one_machine(cluster, tmp_path, capsys):
    options = ["--methods", "cidm", "--tasks", "2", "--seeds", "0", "--steps", "1", "--set", "steps=3", "--no-curves"]
    spread = ["--address", cluster.address]
    assert main(["cluster", "benchmark", *options, "--folder", str(tmp_path / "spread" / "out"), *spread]) == 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["benchmark", *options, "--folder", str(tmp_path / "alone" / "out")]) == 0
    torch.set_num_threads(threads)
    mine, alone = contents(tmp_path / "spread"), contents(tmp_path / "alone")
    assert mine == alone and any(name.endswith("dog-first-1.json") for name in alone)


@pytest.mark.slow
def test_ten_kills_at_random_leave_the_same_ten_files(cluster, photos, one_by_one, tmp_path):
    draw, killed, ended = random.Random(0), [], threading.Event()

    def kill_at_random() -> None:
        while len(killed) < 10 and not ended.wait(draw.uniform(1, 6)):
            for process in workers_of(cluster)[:1]:
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)

    thread = threading.Thread(target=kill_at_random, daemon=True)
    thread.start()
    file, bank = tasks(tmp_path / "ten.jsonl", photos), tmp_path / "bank"
    for _ in range(20):
        if main(command(cluster, file, bank, "--tries", 9)) == 0 and len(killed) >= 10:
            break
    ended.set()
    assert len(killed) == 10 and files_in(bank) == one_by_one
