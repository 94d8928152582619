"""The processes of one training that ``accelerate launch`` or ``torchrun`` started. They find each other through accelerate."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import distributed, nn

from ..training.processes import Processes

SPLIT = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


class Launched(Processes):
    """The processes of ``state``. Numbers travel in fp32 and arrive the same in all of them."""

    def __init__(self, state: PartialState):
        self.state, self.count, self.number = state, state.num_processes, state.process_index

    def add_gradients(self, parameters: Sequence[nn.Parameter], loss: float, short: bool) -> tuple[float, bool]:
        facts = torch.tensor([loss, float(short), *(float(p.grad is not None) for p in parameters)], device=self.state.device)
        distributed.all_reduce(facts)
        total, shortages, *used = facts.tolist()
        if shortages:
            return loss, True
        moving = [p for p, count in zip(parameters, used, strict=True) if count]
        if not moving:
            return total, False
        whole = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in moving])
        distributed.all_reduce(whole)
        for parameter, part in zip(moving, whole.split([p.numel() for p in moving]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        return total, False

    def check_same(self, what: str) -> None:
        said = gather_object([what])
        if other := next((number for number, heard in enumerate(said) if heard != said[0]), 0):
            raise ValueError(
                f"process {other} of {self.count} is not where the first one is ({said[other][:60]}, not {said[0][:60]}): give all of them "
                "the same command, base, pictures and packages, and on several machines a bank in a folder that all of them see"
            )

    def one_reads_first(self) -> AbstractContextManager[None]:
        return self.state.local_main_process_first()

    def wait(self) -> None:
        self.state.wait_for_everyone()


@contextmanager
def launched(device: str | None) -> Iterator[tuple[Processes, str | None]]:
    """Join the processes of this launch while this is open, and give them with the device of this one.

    Raises ``ValueError`` for a configuration that splits a base over several devices, which is not done here.
    """
    if split := next((name for variable, name in SPLIT.items() if os.environ.get(variable, "").lower() in ("true", "1")), ""):
        raise ValueError(
            f"the configuration of accelerate asks for {split}: every process here holds the whole base, so choose MULTI_GPU or MULTI_CPU; "
            "where a base does not fit, train at a smaller size, in half precision (--dtype bfloat16) or with --set checkpointing=true"
        )
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    try:
        yield Launched(state), device or str(state.device)
    finally:
        state.destroy_process_group()
