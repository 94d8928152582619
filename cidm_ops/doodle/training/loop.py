"""One resumable training loop for every part of the Doodle model.

All randomness of a step comes from ``(seed, step)``, so a run that was stopped continues exactly as one that was not. Under
``torchrun`` every process takes a batch of its own and gradients are averaged.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from ...bank.files import write_atomically
from ...bank.formats import packed
from ...text_file import read_json
from ...training.memory import has_bf16
from ...training.stops import hold_signals, keep_together
from .muon import Muon
from .processes import rank_and_count

log = logging.getLogger("cidm.doodle")
STEPS = "{}-steps.json"  # says how many steps a part gets, where that was fitted into a time
WARM, TIMED = 5, 15  # steps before time is measured, and while it is
LossAt = Callable[[np.random.Generator, torch.Generator], Tensor]


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, constant, then a cosine to zero over the second half."""
    if step < warmup:
        return peak * (step + 1) / warmup
    half = steps / 2
    return peak if step < half else peak * 0.5 * (1 + np.cos(np.pi * min(1.0, (step - half) / half)))


def in_fast_precision(device: torch.device | str) -> torch.autocast:
    """Compute matrix products in bf16 while this is open, where the hardware is made for it: elsewhere a step takes ten times as long."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device))


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file of tensors of any device: a reader sees the old file or the new one, never a part."""
    write_atomically(packed({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, metadata or {}), file)


class OutOfTime(Exception):
    """Raised where a session's time is over before a stage is: its checkpoint is written, and the same again goes on from there."""


@dataclass(frozen=True)
class Session:
    """A session keeps checkpoints in a folder, and ends a stage early with one after so many seconds.

    Past its ``deadline``, on the clock of ``time.monotonic``, it raises ``OutOfTime``. ``seconds``, by the name of a part, say how long its
    training may take: it gets as many steps as fit, counted once and kept, at most those that it was given.
    """

    folder: Path
    stop_after: float = float("inf")
    deadline: float = float("inf")
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimisation:
    """How a part is trained: AdamW, or Muon for its matrices; ``ema`` is the decay of the weights' moving average, and ``rates`` are the
    largest learning rates of parameters, by what begins their names, where that is not ``lr``.
    """

    steps: int
    lr: float
    weight_decay: float = 0.01
    ema: float = 0.998
    muon: bool = False
    seed: int = 0
    save_every: int = 500
    rates: Mapping[str, float] = field(default_factory=dict)

    def optimiser(self, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser of parameters by name; only matrices that are no embeddings decay."""
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for name, p in parameters.items():
            peak, inner = self.rate_of(name), p.ndim > 1 and "embedding" not in name
            like = {"peak": peak, "muon": self.muon and inner, "weight_decay": self.weight_decay if inner else 0.0}
            groups.setdefault((peak, inner), {"params": [], **like})["params"].append(p)
        return Muon([*groups.values()], self.lr) if self.muon else torch.optim.AdamW([*groups.values()], self.lr, (0.9, 0.99))

    def rate_of(self, name: str) -> float:
        """The largest learning rate of a parameter."""
        return next((rate for start, rate in self.rates.items() if name.startswith(start)), self.lr)


def train(
    name: str,
    module: nn.Module,
    loss_at: LossAt,
    session: Session,
    how: Optimisation,
) -> dict[str, Tensor]:
    """Minimise ``loss_at(rng, generator) -> loss`` from the checkpoint of that name, if any, and returns the average of the weights.

    Raises ``FloatingPointError`` when the loss stops being finite; the last checkpoint stays. Raises ``OutOfTime``, see ``Session``.
    """
    session.folder.mkdir(parents=True, exist_ok=True)
    file = session.folder / f"{name}.safetensors"
    parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
    if name in session.seconds or (session.folder / STEPS.format(name)).exists():
        how = fit_steps(name, parameters, loss_at, session, how)
    average = {k: p.detach().clone() for k, p in parameters.items()}
    optimiser = how.optimiser(parameters)
    start = _restore(file, parameters, average, optimiser) if file.exists() else 0
    began, recent = time.monotonic(), deque[Tensor](maxlen=100)
    device = next(iter(parameters.values())).device
    rank, world = rank_and_count()
    done = start

    def keep_state() -> None:
        if rank == 0 and done > start:
            with hold_signals():
                _save(file, done, parameters, average, optimiser)

    try:
        for step in range(start, how.steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, how.steps, group["peak"])
            draw = how.seed * 10_000_019 + step * world + rank
            loss = _gradients(list(parameters.values()), optimiser, loss_at, draw, world)
            with keep_together():
                optimiser.step()
                keep = min(how.ema, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - keep)
                done = step + 1
            recent.append(loss.detach().clone())  # a CUDA graph writes the next one into the same place
            late = world == 1 and (time.monotonic() - began > session.stop_after or time.monotonic() > session.deadline)
            saves = done % how.save_every == 0 or done == how.steps or late
            if device.type == "cpu" or done % 50 == 0 or saves:  # reading a loss waits for a device, which then waits for the next step
                losses = torch.stack([*recent]).float().cpu().numpy()
                if (wrong := np.flatnonzero(~np.isfinite(losses))).size:
                    at = done - len(losses) + int(wrong[0])
                    raise FloatingPointError(f"{name}: loss is {losses[wrong[0]]} at step {at}; the last checkpoint is {file}")
                if done % 50 == 0:
                    pace = (time.monotonic() - began) / (done - start)
                    log.info("%s %d/%d loss %.4f, %.3f s per step", name, done, how.steps, losses.mean(), pace)
            if rank == 0 and saves:
                keep_state()
            if late:
                break
    except KeyboardInterrupt:
        keep_state()
        log.info("stopped %s at step %d of %d: the same again goes on from there", name, done, how.steps)
        raise
    if done < how.steps and time.monotonic() > session.deadline:
        raise OutOfTime(f"{name} is at step {done} of {how.steps}: the same again goes on from there")
    return average


def fit_steps(name: str, parameters: dict[str, nn.Parameter], loss_at: LossAt, session: Session, how: Optimisation) -> Optimisation:
    """Give as many steps as fit into the seconds that the session has for this part, by the time that some take; the weights stay.

    What was found is kept in the folder, so that a training that goes on is the one that was begun.
    """
    file = session.folder / STEPS.format(name)
    if not file.exists():
        before = {k: p.detach().clone() for k, p in parameters.items()}
        optimiser = replace(how, lr=0.0).optimiser(parameters)
        began = 0.0
        for step in range(WARM + TIMED):
            if step == WARM:
                began = time.monotonic()
            loss = _gradients(list(parameters.values()), optimiser, loss_at, step, 1)
            optimiser.step()
            float(loss.detach())  # waits for the device
        pace = (time.monotonic() - began) / TIMED
        with torch.no_grad():
            for k, p in parameters.items():
                p.copy_(before[k])
                p.grad = None
        steps = int(min(how.steps, max(1, session.seconds[name] / pace)))
        write_atomically(json.dumps({"steps": steps, "seconds_per_step": round(pace, 4)}).encode(), file)
        log.info("%s: %d steps of %.3f s fit into %.0f s", name, steps, pace, session.seconds[name])
    return replace(how, steps=int(read_json(file)["steps"]))


def _gradients(
    parameters: list[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    loss_at: LossAt,
    draw: int,
    world: int,
) -> Tensor:
    """Return the loss of the random numbers ``draw``, with its gradients, averaged over all processes, in the parameters."""
    optimiser.zero_grad(set_to_none=True)
    loss = loss_at(np.random.default_rng(draw), torch.Generator(parameters[0].device).manual_seed(draw))
    loss.backward()
    if world > 1:
        _average([p.grad for p in parameters if p.grad is not None], world)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    return loss


def _average(gradients: list[Tensor], world: int) -> None:
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for g, part in zip(gradients, flat.div_(world).split([g.numel() for g in gradients]), strict=True):
        g.copy_(part.view_as(g))


def _save(file: Path, step: int, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    tensors: dict[str, Tensor] = {}
    for k, p in parameters.items():
        tensors |= {f"now.{k}": p, f"average.{k}": average[k]}
        tensors |= {f"{entry}.{k}": value for entry, value in optimiser.state[p].items()}
    save_tensors(tensors, file, {"step": json.dumps(step)})


def _restore(file: Path, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> int:
    with safe_open(file, "pt") as f, torch.no_grad():
        step = json.loads(f.metadata()["step"])
        for k, p in parameters.items():
            p.copy_(f.get_tensor(f"now.{k}"))
            average[k].copy_(f.get_tensor(f"average.{k}"))
            entries = [key.partition(".")[0] for key in list(f.keys()) if key.partition(".")[2] == k]
            optimiser.state[p] = {e: f.get_tensor(f"{e}.{k}").to(p.device) for e in entries if e not in ("now", "average")}
    log.info("continuing %s at step %d", file.stem, step)
    return step
