"""The loop that learns a concept on a frozen base, or several together, by any method: memory, micro-batches, accumulation, previews and
exact resume.

All that is random in a step comes from the seed and the number of the step, so a run that was stopped goes on exactly as
one that was not.
"""

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone, TransformerBackbone
from ..bank.concept import Concept
from ..painting.sampling import sample
from ..recompute import recompute
from .batches import Batches, Sample
from .captions import joint_captions
from .dataset import Dataset
from .memory import Bf16Weights, MemoryPlan, is_out_of_memory
from .method import Batch, Method, Task
from .methods import method_of
from .objective import add_noise
from .record import flat_settings
from .stops import keep_together

EXPLODED = 3.0  # the loss has exploded when its average is so many times what it was in the beginning


class Trainer:
    """A training run: ``advance`` takes one step, ``state`` and ``load`` stop it and let it go on, ``concepts`` is the result.

    ``earlier`` are the concepts that the method learns after, ``start`` is one to go on from. ``warnings`` collects what a person should
    know about the run.
    """

    def __init__(
        self,
        backbone: Backbone | TransformerBackbone,
        data: Dataset,
        task: Task,
        *,
        method: Method | None = None,
        earlier: Sequence[Concept] = (),
        start: Concept | None = None,
    ):
        self.backbone: Any = backbone
        self.task, self.config = task, task.config
        self.method, self.number = method or method_of(task.config), 1 + len(earlier)
        self.earlier, self.start = list(earlier), start
        config = self.config
        captions, self.warnings = joint_captions(data.captions, task.concepts, self.method.words_by_name(task))
        self.batches = Batches(backbone, data, captions, config.wording, str(config.seed))
        prior = task.prior if config.prior else None
        plain = [caption or task.plain for caption in prior.captions] if prior else []
        self.prior = prior and Batches(backbone, prior, plain, config.wording, f"{config.seed}/prior")
        self.method.check_family(backbone.family)
        if task.assistant is not None and backbone.family.layerwise:
            raise ValueError(f"an assistant is for distilled transformers, and this base is {backbone.family.title}: leave it off")
        generator = torch.Generator().manual_seed(config.seed)
        self.learner: Any = self.method.make_learner(self.backbone, task, earlier, generator)
        if start is not None:
            self.learner.begin(start)
        self.learner.to(backbone.device)
        self.learner.look_at(data)
        groups = self.learner.groups()
        self.rates = [group.lr for group in groups]
        self.optimizer = torch.optim.AdamW([{"params": group.parameters} for group in groups], weight_decay=config.weight_decay)
        self.plan = MemoryPlan.of(config, self.backbone)
        self.bf16_weights = Bf16Weights([backbone.unet, *backbone.texts.values()])
        self.losses: list[float] = []
        self.whole = True  # no step was cut in two

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks that are computed again, of a transformer; those of a U-Net are known by their classes."""
        return [] if self.backbone.family.layerwise else list(self.backbone.blocks.values())

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return len(self.losses)

    @property
    def done(self) -> bool:
        return self.step >= self.config.steps

    def read_texts(self) -> None:
        """Acts before the first step: the learner hears of all texts that it will read, if they can be listed."""
        own, prior = self.batches.texts(), self.prior.texts() if self.prior else []
        self.learner.read_all([*own, *prior] if own and (prior or not self.prior) else [])

    def attach(self) -> AbstractContextManager[None]:
        """Make the model the base with the concept as far as it is learned, while this is open."""
        return self.learner.attach()

    def advance(self) -> float:
        """Takes one step, inside ``attach``, and returns its loss. Raises ``FloatingPointError`` when that is not finite or explodes."""
        if not self.losses:
            self.method.prepare(self)
        scale = self.learner.lr_scale(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale
        loss = self.compute_gradients()
        with keep_together():
            self.whole = False
            self.optimizer.step()
            self.losses.append(loss)
            self.learner.after_step()
            self.whole = True
        return loss

    def compute_gradients(self) -> float:
        """Computes the gradients of a step, and returns its loss.

        Raises ``FloatingPointError`` for no numbers and ``MemoryError`` for too little memory.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss, shortage = self.try_batches()
        loss, short = self.task.processes.add_gradients(list(self.learner.parameters()), loss, bool(shortage))
        if short:  # outside of the handler, which holds on to the tensors of the failed step
            self.plan = self.reduce_memory(shortage or "in another process")
            return self.compute_gradients()
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        for gradient in gradients:
            gradient /= self.plan.scale
        extra = self.learner.regularization()
        if extra.requires_grad:
            extra.backward()
        self.check_loss(loss, float(torch.nn.utils.get_total_norm(gradients)))
        return loss

    def try_batches(self) -> tuple[float, str]:
        """Adds up the gradients of the batches of a step, of several processes those of its share. Returns their mean loss, or the share of
        it, and what the system said if memory was short.
        """
        config, losses = self.config, []
        try:
            for number in range(self.step * config.accumulate, (self.step + 1) * config.accumulate):
                losses.append(self.accumulate(*self.batches.batch(number, config.batch)))
                if self.prior:
                    self.accumulate(*self.prior.batch(number, config.batch), weight=config.prior)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return math.nan, next(iter(str(error).splitlines()), "there is not enough memory")
        return sum(losses) / len(losses), ""

    def reduce_memory(self, shortage: str) -> MemoryPlan:
        """Returns the next plan that needs less memory. Raises ``MemoryError`` with advice if there is none or it is not wanted."""
        reduced = self.plan.reduce()
        if reduced is None:
            raise MemoryError(f"memory is short even with {self.plan}: train at a smaller size, or free memory ({shortage})")
        if self.config.memory != "auto":
            raise MemoryError(f"memory is short with {self.plan}: try {reduced}, or memory=auto, which finds what fits ({shortage})")
        self.warnings.append(f"memory was short with {self.plan}: going on with {reduced}")
        self.backbone.free_memory()
        return reduced

    def accumulate(self, samples: Sequence[Sample], generator: torch.Generator, weight: float = 1.0) -> float:
        """Adds the gradients of a batch and returns its mean loss; pictures of one shape go through the model together. Each of several
        processes takes its share of the pictures, with the noise that they have in the whole batch.
        """
        config, schedule, total = self.config, self.backbone.schedule, 0.0
        share = self.task.processes.share(len(samples))
        for shape in dict.fromkeys(s.latent.shape for s in samples):
            numbers = [i for i, s in enumerate(samples) if s.latent.shape == shape]
            alike = [samples[i] for i in numbers]
            clean = torch.stack([s.latent for s in alike])
            t = self.learner.draw_timesteps(clean, generator)
            whole = add_noise(clean, schedule, generator, config.noise_offset, config.min_snr, t)
            own = [place for place, i in enumerate(numbers) if i in share]  # one behind the other
            for first in range(own[0], own[-1] + 1, self.plan.micro_batch) if own else ():
                part = slice(first, min(first + self.plan.micro_batch, own[-1] + 1))
                batch = Batch(whole.part(part), alike[part], self.step)
                with self.computing(batch.noised.x), ExitStack() as during:
                    loss, extra = (value / len(samples) for value in self.learner.loss(batch, during))
                    ((loss + extra) * weight * self.plan.scale / config.accumulate).backward()
                total += float(loss.detach())
        return total

    @contextmanager
    def computing(self, x: Tensor) -> Iterator[None]:
        """Let the model compute on ``x`` as ``plan`` says and be differentiated, while this is open."""
        with (
            self.backbone.training_mode(x),
            torch.autocast(x.device.type, torch.bfloat16, enabled=self.plan.bf16),
            self.bf16_weights.use() if self.plan.bf16 else nullcontext(),
            recompute(self.backbone.unet, self.blocks) if self.plan.checkpointing else nullcontext(),
        ):
            yield

    def check_loss(self, loss: float, gradient: float) -> None:
        """Raises ``FloatingPointError`` with advice for a loss or a norm of gradients that a run does not come back from."""
        advice = "lower the learning rates or use fp32; the bank is unchanged, and the run can go on from its last checkpoint"
        for what, value in (("loss", loss), ("norm of the gradients", gradient)):
            if not math.isfinite(value):
                raise FloatingPointError(f"the {what} is {value} at step {self.step + 1}: {advice}")
        if self.step >= 40:
            before, now = (sum(part) / 20 for part in (self.losses[:20], self.losses[-20:]))
            if now > EXPLODED * before:
                raise FloatingPointError(f"the loss rose from {before:.3f} to {now:.3f} by step {self.step + 1}: {advice}")

    def check_same(self) -> None:
        """Raises ``ValueError`` if several processes have not come to the same numbers."""
        if self.task.processes.count > 1:
            digest = hashlib.sha256(str(self.losses).encode())
            for parameter in self.learner.parameters():
                digest.update(parameter.detach().float().cpu().numpy().tobytes())
            self.task.processes.check_same(f"step {self.step} {digest.hexdigest()}")

    @torch.no_grad()
    def preview(self, prompt: str, seed: int = 0, steps: int = 15, guidance: float | None = None) -> Tensor:
        """Returns a picture ``[3, H, W]`` in [-1, 1] of what is learned so far, inside ``attach``; ``<name>`` stands for the concept."""
        wanted, nothing, predict = self.learner.preview(prompt)
        first = self.batches.draw(0, False, random.Random(0))[0]
        noise = torch.randn(1, *first.shape, generator=torch.Generator().manual_seed(seed)).to(self.backbone.device)
        guidance = self.learner.preview_guidance if guidance is None else guidance
        latent = sample(self.backbone, wanted, nothing, noise, steps=steps, guidance=guidance, predict=predict)
        return self.backbone.decode_latent(latent)[0]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns tensors and facts to go on from."""
        named = dict(self.learner.named_parameters())
        tensors = {f"now.{n}": p.detach() for n, p in named.items()}
        for name, p in named.items():
            tensors |= {f"{entry}.{name}": value for entry, value in self.optimizer.state.get(p, {}).items()}
        more, facts = self.learner.state()
        return tensors | more, {"losses": self.losses, **facts, "means": self.plan.record()}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        for name, p in self.learner.named_parameters():
            entries = {key.partition(".")[0]: t for key, t in tensors.items() if key.partition(".")[2] == name}
            with torch.no_grad():
                p.copy_(entries.pop("now"))
            if entries:
                self.optimizer.state[p] = {e: t.clone() if e == "step" else t.to(p) for e, t in entries.items()}
        self.losses, self.plan = list(facts["losses"]), MemoryPlan.from_record(facts["means"])
        self.learner.load(tensors, facts)

    def concept(self) -> Concept:
        """Returns what was learned so far of the task's first concept."""
        return self.concepts()[0]

    def concepts(self) -> list[Concept]:
        """Returns what was learned so far of every concept of the task."""
        recent, data = self.losses[-50:], self.batches.data
        count = {"templates": len(self.config.templates), "pictures": len(data), "loss": sum(recent) / max(1, len(recent))}
        if data.generated:
            count["generated"] = data.generated
        return [
            Concept(
                name=name,
                class_word=self.task.concepts[name],
                architecture=self.backbone.architecture,
                fingerprint=self.backbone.fingerprint,
                task=self.number,
                training=flat_settings(self.config, self.method) | count | self.learner.record(),
                **parts,
            )
            for name, parts in self.learner.parts_by_name().items()
        ]
