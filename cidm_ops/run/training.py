"""Learning one concept on a frozen base: layer-wise tokens and cross-attention factors (CIDM 3.1, recipe of 4.1).

All that is random in a step comes from the seed and the number of the step, so a run that was stopped goes on exactly as
one that was not.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..adapters import attached, linears
from ..backbone import Backbone
from ..bank.concept import Concept
from ..causal import attention_layers
from ..hub import watched
from ..lowrank import LowRank
from ..method.attention import attention_loss
from ..method.consolidation import consolidation, shared_loss, shared_rows
from ..painting.sampling import sample
from ..recompute import recomputed
from ..tokens import Text, encode_layerwise, join, positions_of
from .captions import concept_captions
from .dataset import Dataset
from .learner import Learner
from .material import Material, Sample, masks_of
from .memory import Halves, Means, is_out_of_memory
from .objective import Noised, error, noised
from .recipe import Recipe

KEPT_TEXTS = 512  # MB of encoded texts that a run keeps once they are constants
EXPLODED = 3.0  # the loss has exploded when its average is so many times what it was in the beginning


class Run:
    """A training run: ``advance`` takes one step, ``state`` and ``load`` stop it and let it go on, ``concept`` is the result."""

    def __init__(
        self,
        backbone: Backbone,
        data: Dataset,
        *,
        class_word: str,
        words: Sequence[str],
        earlier: Sequence[Concept] = (),
        recipe: Recipe | None = None,
        prior: Dataset | None = None,
        start: Concept | None = None,
    ):
        self.backbone, self.data, self.recipe = backbone, data, recipe or Recipe()
        self.class_word, self.words, self.task = class_word, tuple(words), 1 + len(earlier)
        recipe = self.recipe
        captions, warnings = concept_captions(data.captions, class_word, words)
        data.warnings.extend(w for w in warnings if w not in data.warnings)
        self.material = Material(backbone, data, captions, recipe.wording, str(recipe.seed))
        self.prior = prior and Material(backbone, prior, prior.captions, recipe.wording, f"{recipe.seed}/prior")
        factors = [c.factors for c in earlier]
        generator = torch.Generator().manual_seed(recipe.seed)
        self.learner = self.begun(factors, generator)
        if start is not None:
            self.learner.begin(start)
        self.learner.to(backbone.device)
        self.term = consolidation(recipe.mode, factors, recipe.lr, generator)
        self.shared = shared_rows(factors, 2 * recipe.rank) if recipe.shared else {}
        self.rates = [recipe.lr_tokens, recipe.lr, recipe.lr_text]
        groups = [[p for p in parameters if p.requires_grad] for parameters in self.learner.groups]
        self.optimiser = torch.optim.AdamW([{"params": group} for group in groups], weight_decay=recipe.weight_decay)
        self.means = Means.of(recipe, backbone)
        self.halves = Halves([backbone.unet, *backbone.texts.values()])
        self.losses: list[float] = []
        self.texts: dict[str, Text] = {}

    def begun(self, earlier: Sequence[Mapping[str, LowRank]], generator: torch.Generator) -> Learner:
        """What learns, before the first step."""
        return Learner(self.backbone, self.class_word, len(self.words), self.recipe, earlier, generator)

    @property
    def decay(self) -> float:
        """What part of their rates the coming step has."""
        return 1 - self.step / self.recipe.steps

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return len(self.losses)

    @property
    def done(self) -> bool:
        return self.step >= self.recipe.steps

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While open, the model is the base with the concept as far as it is learned."""
        layers = {**linears(self.backbone), **attention_layers(self.backbone.texts)}
        with attached(layers, self.learner.deltas()):
            yield

    def advance(self) -> float:
        """One step, inside ``attached``; returns its loss. Raises ``FloatingPointError`` when the loss is not finite or explodes."""
        recipe = self.recipe
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.decay
        loss = self.gradients()
        self.optimiser.step()
        self.term.after_step(self.learner.factors())
        self.losses.append(loss)
        if self.learner.words_learn and self.learner.norm >= recipe.norm_stop:
            self.freeze_tokens()
        return loss

    def gradients(self) -> float:
        """The gradients of a step, and its loss. Raises ``FloatingPointError`` for no numbers and ``MemoryError`` for too little memory."""
        recipe = self.recipe
        self.optimiser.zero_grad(set_to_none=True)
        losses = []
        try:
            for number in range(self.step * recipe.accumulate, (self.step + 1) * recipe.accumulate):
                losses.append(self.accumulate(*self.material.batch(number, recipe.batch)))
                if self.prior:
                    self.accumulate(*self.prior.batch(number, recipe.batch), weight=recipe.prior)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shortage = str(error).splitlines()[0]
        else:
            shortage = ""
        if shortage:  # outside of the handler, which holds on to the tensors of the failed step
            self.means = self.thriftier(shortage)
            return self.gradients()
        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        for gradient in gradients:
            gradient /= self.means.scale
        factors = self.learner.factors()
        extra = recipe.consolidation * self.term.loss(factors)
        if self.shared:
            extra = extra + recipe.shared * shared_loss(factors, self.shared)
        if extra.requires_grad:
            extra.backward()
        loss = sum(losses) / len(losses)
        self.check(loss, float(torch.nn.utils.get_total_norm(gradients)))
        return loss

    def thriftier(self, shortage: str) -> Means:
        """The next way of computing that needs less memory. Raises ``MemoryError`` with advice if there is none or it is not wanted."""
        less = self.means.less()
        if less is None:
            raise MemoryError(f"memory is short even with {self.means}: train at a smaller size, or free memory ({shortage})")
        if self.recipe.memory != "auto":
            raise MemoryError(f"memory is short with {self.means}: try {less}, or memory=auto, which finds what fits ({shortage})")
        self.data.warnings.append(f"memory was short with {self.means}: going on with {less}")
        self.backbone.make_room()
        return less

    @torch.no_grad()
    def picture(self, prompt: str, seed: int = 0, steps: int = 15, guidance: float = 5.0) -> Tensor:
        """A picture ``[3, H, W]`` in [-1, 1] of what is learned so far, inside ``attached``; ``<name>`` stands for the concept."""
        backbone = self.backbone
        text = prompt.replace(f"<{self.words[0][1:].rpartition('.')[0]}>", " ".join(self.words))
        wanted, plain = (encode_layerwise(backbone, [t], self.learner.tables(self.words)) for t in (text, ""))
        return backbone.decode_latent(sample(backbone, wanted, plain, self.noise(seed), steps=steps, guidance=guidance))[0]

    def noise(self, seed: int) -> Tensor:
        """Noise of the shape of the first picture's latent, ``[1, C, h, w]``."""
        shape = self.material.draw(0, False, random.Random(0))[0].shape
        return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)).to(self.backbone.device)

    def freeze_tokens(self) -> None:
        """The words are learned: from here on texts are constants."""
        for rows in self.learner.tokens.values():
            rows.requires_grad_(False)
            rows.grad = None

    def accumulate(self, samples: Sequence[Sample], generator: torch.Generator, weight: float = 1.0) -> float:
        """Add the gradients of a batch and return its mean loss; pictures of one shape go through the model together."""
        recipe, schedule, total = self.recipe, self.backbone.schedule, 0.0
        for shape in dict.fromkeys(s.latent.shape for s in samples):
            alike = [s for s in samples if s.latent.shape == shape]
            whole = noised(torch.stack([s.latent for s in alike]), schedule, generator, recipe.noise_offset, recipe.min_snr)
            for first in range(0, len(alike), self.means.at_once):
                part = slice(first, first + self.means.at_once)
                draw, here = whole.part(part), alike[part]
                with self.computing(draw.x), ExitStack() as during:
                    loss, more = (part / len(samples) for part in self.loss(draw, here, during))
                    ((loss + more) * weight * self.means.scale / recipe.accumulate).backward()
                total += float(loss.detach())
        return total

    def loss(self, draw: Noised, samples: Sequence[Sample], during: ExitStack) -> tuple[Tensor, Tensor]:
        """Of pictures of one shape, summed: the loss that is told, and what is added to it. What has to be open in the backward pass
        too goes into ``during``.
        """
        seen = during.enter_context(self.watching(samples))
        text = self.text([s.text for s in samples])
        guess = self.backbone.predict(draw.x, draw.t, text.context, text.pooled).float()
        told = error(guess, draw, masks_of(samples)).sum()
        return told, self.attention(seen, samples) if seen else torch.zeros_like(told)

    def watching(self, samples: Sequence[Sample]) -> AbstractContextManager[list[Any]]:
        """Collects the attention of the words if that is regularised and there are masks to do it by."""
        if self.recipe.attention and any(s.mask is not None for s in samples):
            return watched(self.backbone.cross_attention.values())
        return nullcontext([])

    def attention(self, seen: Sequence[Any], samples: Sequence[Sample]) -> Tensor:
        """The weighted attention loss of the samples that have masks, summed."""
        total = torch.zeros((), device=self.backbone.device)
        for row, shown in enumerate(samples):
            positions = positions_of(self.backbone, shown.text, self.words)
            if shown.mask is not None and positions:
                total = total + attention_loss(seen, row, positions, shown.mask)
        return self.recipe.attention * total

    @contextmanager
    def computing(self, x: Tensor) -> Iterator[None]:
        """While open, the model computes on ``x`` as ``means`` says and can be differentiated."""
        with (
            self.backbone.learning(x),
            torch.autocast(x.device.type, torch.bfloat16, enabled=self.means.bf16),
            self.halves.used() if self.means.bf16 else nullcontext(),
            recomputed(self.backbone.unet) if self.means.checkpointing else nullcontext(),
        ):
            yield

    def text(self, texts: Sequence[str]) -> Text:
        """Texts encoded for every layer. Once nothing about texts is learned any more, each is encoded by itself and kept."""
        tables = self.learner.tables(self.words)
        if self.learner.words_learn or self.recipe.lr_text:
            return encode_layerwise(self.backbone, texts, tables)
        encoded = []
        for text in texts:
            known = self.texts.pop(text, None)
            if known is None:
                with torch.no_grad():
                    known = encode_layerwise(self.backbone, [text], tables)
            self.texts[text] = known  # the last one used goes last
            encoded.append(known)
            if sum(t.states.nbytes for t in self.texts.values()) > KEPT_TEXTS * 2**20:
                del self.texts[next(iter(self.texts))]
        return join(encoded)

    def check(self, loss: float, gradient: float) -> None:
        """Raises ``FloatingPointError`` with advice for a loss or a norm of gradients that a run does not come back from."""
        advice = "lower the learning rates or use fp32; the bank is unchanged, and the run can go on from its last checkpoint"
        for what, value in (("loss", loss), ("norm of the gradients", gradient)):
            if not math.isfinite(value):
                raise FloatingPointError(f"the {what} is {value} at step {self.step + 1}: {advice}")
        if self.step >= 40:
            before, now = (sum(part) / 20 for part in (self.losses[:20], self.losses[-20:]))
            if now > EXPLODED * before:
                raise FloatingPointError(f"the loss rose from {before:.3f} to {now:.3f} by step {self.step + 1}: {advice}")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts to go on from."""
        named = dict(self.learner.named_parameters())
        tensors = {f"now.{n}": p.detach() for n, p in named.items()}
        for name, p in named.items():
            tensors |= {f"{entry}.{name}": value for entry, value in self.optimiser.state.get(p, {}).items()}
        tensors |= {f"term.{n}": t for n, t in self.term.state().items()}
        return tensors, {"losses": self.losses, "frozen": not self.learner.words_learn, "means": asdict(self.means)}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        for name, p in self.learner.named_parameters():
            entries = {key.partition(".")[0]: t for key, t in tensors.items() if key.partition(".")[2] == name}
            with torch.no_grad():
                p.copy_(entries.pop("now"))
            if entries:
                self.optimiser.state[p] = {e: t.clone() if e == "step" else t.to(p) for e, t in entries.items()}
        self.term.load({n.removeprefix("term."): t for n, t in tensors.items() if n.startswith("term.")})
        self.losses, self.means = list(facts["losses"]), Means(**facts["means"])
        if facts["frozen"]:
            self.freeze_tokens()

    def settings(self) -> dict[str, Any]:
        """How it was learned, for the file."""
        recent = self.losses[-50:]
        return asdict(self.recipe) | {
            "templates": len(self.recipe.templates),
            "pictures": len(self.data),
            "loss": sum(recent) / len(recent),
        }

    def concept(self, name: str) -> Concept:
        """What was learned so far."""
        backbone = self.backbone
        return Concept(
            name,
            self.class_word,
            self.words,
            self.learner.learned(),
            {encoder: rows.detach().cpu() for encoder, rows in self.learner.tokens.items()},
            backbone.architecture,
            backbone.fingerprint,
            self.task,
            self.settings(),
            self.learner.layers,
            self.learner.learned(text=True),
        )
