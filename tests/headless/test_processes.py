"""Two processes that a launcher started learn what one learns with both their batches, and say so where they cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_command_line import photos

from cidm_ops.bank.bank import Bank
from cidm_ops.training.checkpoint import checkpoint_file

PACK = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
STEPS = 6

pytestmark = pytest.mark.skipif(os.name != "posix", reason="several processes of one training are tried on Linux and macOS")


def start(launcher: list[str], arguments: list[str], stop: int = -1, **environment: str) -> tuple[int, str]:
    """Run a training in processes of its own, to its end or to a step; its exit code and what it said."""
    here = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PACK), **environment}
    command = ["-m", "cidm_ops"] if stop < 0 else [str(Path(__file__).with_name("stopping.py")), str(stop)]
    argv = [sys.executable, *launcher, *command, "train", *arguments]
    done = subprocess.run(argv, cwd=PACK, env=here, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def given(tiny_sd1, tmp_path_factory) -> list[str]:
    """What is trained everywhere here: pictures of one shape and another, turned at random."""
    images = photos(tmp_path_factory.mktemp("photos") / "rex", ["a dog on grass", "a dog", "a dog in snow"])
    common = ["--base", str(tiny_sd1), "--images", str(images), "--class-word", "dog", "--size", "64", "--fit", "buckets", "--flip"]
    return [*common, "--steps", str(STEPS), "--set", "lr=1e-2", "--set", "lr_tokens=1e-2", "--set", "accumulate=2"]


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory) -> Bank:
    """The bank of one process with a batch of two."""
    folder = tmp_path_factory.mktemp("alone")
    code, said = start([], [*given, "--set", "batch=2", "--bank", str(folder)])
    assert code == 0, said
    return Bank(folder)


def contents(file: Path) -> tuple[dict[str, torch.Tensor], dict]:
    concept = Bank(file.parent).get(file.stem)
    with safe_open(file, "pt") as f:
        return {key: f.get_tensor(key) for key in f.keys()} | concept.tokens, concept.training  # noqa: SIM118


def check_alike(bank: Path, alone: Bank) -> None:
    """What two banks have of <rex> differs by no more than the order of sums in fp32, and is said to be of the same task.

    Kernels for one picture and for two add in other orders: with AMX factors differed by at most 1e-5, without by 1.3e-5.
    """
    (mine, told), (other, said) = contents(bank / "rex.safetensors"), contents(alone.file("rex"))
    assert mine.keys() == other.keys() and max((mine[key] - other[key]).abs().max().item() for key in mine) <= 2e-5
    assert max(abs(a - b) for a, b in zip(told.pop("losses"), said.pop("losses"), strict=True)) <= 2e-5
    assert told.pop("loss") == pytest.approx(said.pop("loss"), abs=1e-5) and told == said


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_with_one_picture_learn_what_one_learns_with_two(given, alone, tmp_path, launcher):
    code, said = start(launcher, [*given, "--set", "batch=1", "--bank", str(tmp_path)])
    assert code == 0, said
    assert "2 processes, each with a batch of 1: a step takes 4 pictures, as with --set batch=2 in one" in said
    assert said.count(str(tmp_path / "rex.safetensors")) == 1, "one of them speaks"
    check_alike(tmp_path, alone)
    code, said = start([], [*given, "--set", "batch=2", "--bank", str(tmp_path)])
    assert code == 0 and "training" not in said, "the same task in one process finds it learned"


def test_a_run_goes_on_with_another_number_of_processes(given, alone, tmp_path):
    for launcher, batch, stop in (([], 2, 2), (TORCHRUN, 1, 4), ([], 2, -1)):
        code, said = start(launcher, [*given, "--set", f"batch={batch}", "--bank", str(tmp_path)], stop)
        assert (code == 0) == (stop < 0), said
        if stop > 0:
            assert f"stopped at step {stop} of {STEPS}: run it again to go on from there" in said
    check_alike(tmp_path, alone)


def test_another_batch_in_all_is_another_run_and_said_to_be(given, tmp_path):
    assert start([], [*given, "--set", "batch=2", "--bank", str(tmp_path)], stop=2)[0]
    code, said = start(TORCHRUN, [*given, "--set", "batch=2", "--bank", str(tmp_path)])
    assert code == 0 and "rex.safetensors is of a run with other pictures, settings or earlier concepts: this one starts anew" in said


def test_a_configuration_that_splits_the_base_is_refused(given, tmp_path):
    code, said = start(TORCHRUN, [*given, "--bank", str(tmp_path)], ACCELERATE_USE_FSDP="true")
    assert code and "asks for FSDP: every process here holds the whole base" in said and not checkpoint_file(Bank(tmp_path), "rex").exists()


def test_processes_that_do_not_see_the_same_are_refused(given, tmp_path):
    """As on two machines whose folders of pictures differ: the second process has a caption of its own."""
    for rank in "01":
        photos(tmp_path / rank, ["a dog", f"a dog of process {rank}"])
    arguments = [*given, "--images", str(tmp_path / "{rank}"), "--name", "rex", "--bank", str(tmp_path / "bank")]
    code, said = start(TORCHRUN, arguments, stop=99)
    assert code and "process 1 of 2 is not where the first one is" in said and Bank(tmp_path / "bank").names == []
