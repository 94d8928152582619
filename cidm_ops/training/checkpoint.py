"""The state of a training run on disk: atomic, and only taken back by the very same task."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..bank.bank import TRAINING, Bank
from ..bank.files import write_atomically
from ..bank.header import check_name
from .trainer import Trainer


def checkpoint_file(bank: Bank, name: str) -> Path:
    """Returns where the run of a concept keeps its state: beside the bank's concepts, out of their way."""
    return bank.folder / TRAINING / f"{check_name(name)}.safetensors"


def save_run(trainer: Trainer, file: Path, task: str) -> None:
    """Writes the state of a run; an earlier state stays until the new one is whole. Of several processes, which have the same, the first
    writes it.
    """
    if not trainer.task.processes.first:
        return
    tensors, facts = trainer.state()
    data = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, {"task": task, "facts": json.dumps(facts)})
    write_atomically(data, file)


def resume_run(trainer: Trainer, file: Path, task: str) -> str | None:
    """Goes on from the state in ``file`` if it is of this task. Returns why a state that is there was not used."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as f:
            known = f.metadata() or {}
            if known.get("task") != task:
                return f"{file.name} is of a run with other pictures, settings or earlier concepts: this one starts anew"
            trainer.load({k: f.get_tensor(k) for k in f.keys()}, json.loads(known["facts"]))  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        return f"{file.name} cannot be read ({error}): the run starts anew"
    return None
