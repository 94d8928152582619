"""The processes that share a training under ``torchrun``: on a CPU, one with one thread for each core is faster than one with many."""

import math
import os
from collections.abc import Callable

import torch
import torch.distributed as dist


def join_processes(device: str, minutes: float) -> None:
    """Meet the other processes, if ``torchrun`` started any; each computes with one thread from now on.

    Raises ``ValueError`` where a time is given: they would stop at different steps.
    """
    if "RANK" not in os.environ:
        return
    if math.isfinite(minutes):
        raise ValueError(f"torchrun keeps no time: --minutes {minutes:g} was given; leave it out, and end the training with Ctrl-C")
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    torch.set_num_threads(1)


def rank_and_count() -> tuple[int, int]:
    """Which of the processes this is, and how many they are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_of(batch: int) -> int:
    """How many pictures of a batch each process takes. Raises ``ValueError`` where they cannot be shared out evenly."""
    _, count = rank_and_count()
    if batch % count:
        raise ValueError(f"{count} processes cannot share a batch of {batch} evenly: give --batch a multiple of {count}")
    return batch // count


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def make_once(make: Callable[[], object]) -> None:
    """Have the first process make files that all of them read; the others wait."""
    if rank_and_count()[0] == 0:
        make()
    wait_for_all()
