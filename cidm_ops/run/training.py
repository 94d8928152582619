"""Learning one concept on a frozen base: layer-wise tokens and cross-attention factors (CIDM 3.1, recipe of 4.1).

All that is random in a step comes from the seed and the number of the step, so a run that was stopped goes on exactly as
one that was not.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapters import attached, linears
from ..backbone import Backbone
from ..bank.concept import Concept
from ..method.consolidation import consolidation, shared_loss, shared_rows
from ..recompute import recomputed
from ..tokens import Text, encode_layerwise, join
from .captions import concept_captions
from .dataset import Dataset
from .learner import Learner
from .memory import Halves, Means, is_out_of_memory
from .objective import Noised, error, noised
from .recipe import Recipe
from .sampling import sample

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
    ):
        self.backbone, self.data, self.recipe = backbone, data, recipe or Recipe()
        self.class_word, self.words, self.task = class_word, tuple(words), 1 + len(earlier)
        self.captions, warnings = concept_captions(data.captions, class_word, words)
        data.warnings.extend(w for w in warnings if w not in data.warnings)
        factors = [c.factors for c in earlier]
        generator = torch.Generator().manual_seed(self.recipe.seed)
        self.learner = Learner(backbone, class_word, len(words), self.recipe, factors, generator).to(backbone.device)
        self.term = consolidation(self.recipe.mode, factors, self.recipe.lr, generator)
        self.shared = shared_rows(factors, 2 * self.recipe.rank) if self.recipe.shared else {}
        groups = ((self.recipe.lr_tokens, [*self.learner.tokens.values()]), (self.recipe.lr, [*self.learner.ups, *self.learner.downs]))
        self.rates = [rate for rate, _ in groups]
        self.optimiser = torch.optim.AdamW(
            [{"params": [p for p in parameters if p.requires_grad]} for _, parameters in groups], weight_decay=self.recipe.weight_decay
        )
        self.means = Means.of(self.recipe, backbone)
        self.halves = Halves(backbone.unet)
        self.losses: list[float] = []
        self.latents: dict[tuple[int, bool], Tensor] = {}
        self.texts: dict[str, Text] = {}

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
        with attached(linears(self.backbone.blocks), self.learner.deltas()):
            yield

    def advance(self) -> float:
        """One step, inside ``attached``; returns its loss. Raises ``FloatingPointError`` when the loss is not finite or explodes."""
        recipe, step = self.recipe, self.step
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * (1 - step / recipe.steps)
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
                losses.append(self.accumulate(self.batch(number), random.Random(f"{recipe.seed}/{number}")))
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
        return less

    @torch.no_grad()
    def picture(self, prompt: str, seed: int = 0, steps: int = 15, guidance: float = 5.0) -> Tensor:
        """A picture ``[3, H, W]`` in [-1, 1] of what is learned so far, inside ``attached``; ``<name>`` stands for the concept."""
        backbone = self.backbone
        text = prompt.replace(f"<{self.words[0][1:].rpartition('.')[0]}>", " ".join(self.words))
        wanted, plain = (encode_layerwise(backbone, [t], self.learner.tables(self.words)) for t in (text, ""))
        height, width = self.latent(0, False, random.Random(0))[0].shape[-2:]
        noise = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(seed)).to(backbone.device)
        return backbone.decode_latent(sample(backbone, wanted, plain, noise, steps=steps, guidance=guidance))[0]

    def freeze_tokens(self) -> None:
        """The words are learned: from here on texts are constants."""
        for rows in self.learner.tokens.values():
            rows.requires_grad_(False)
            rows.grad = None

    def batch(self, number: int) -> list[int]:
        """Pictures of batch ``number`` of the run: passes over the data, each in an order of its own."""
        size, count = self.recipe.batch, sum(self.data.repeats)
        places = range(number * size, number * size + size)
        orders = {e: self.data.order(random.Random(f"{self.recipe.seed}/pass {e}")) for e in {p // count for p in places}}
        return [orders[p // count][p % count] for p in places]

    def accumulate(self, batch: Sequence[int], rng: random.Random) -> float:
        """Add the gradients of a batch of pictures and return its mean loss; those of one shape go through the model together."""
        recipe, means = self.recipe, self.means
        flips = [self.data.flip and rng.random() < 0.5 for _ in batch]
        drawn = [self.latent(i, flip, rng) for i, flip in zip(batch, flips, strict=True)]
        texts = [recipe.wording.say(self.captions[i], rng) for i in batch]
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        total = 0.0
        for shape in dict.fromkeys(latent.shape for latent, _ in drawn):
            alike = [k for k, (latent, _) in enumerate(drawn) if latent.shape == shape]
            whole = self.noised(torch.stack([drawn[k][0] for k in alike]), generator)
            for start in range(0, len(alike), means.at_once):
                part = slice(start, start + means.at_once)
                draw, masks = whole.part(part), [drawn[k][1] for k in alike[part]]
                mask = None
                if any(m is not None for m in masks):
                    mask = torch.stack([torch.ones(1, *shape[1:]) if m is None else m for m in masks]).to(draw.x)
                with self.computing(draw.x):
                    text = self.text([texts[k] for k in alike[part]])
                    guess = self.backbone.predict(draw.x, draw.t, text.context, text.pooled).float()
                    loss = error(guess, draw, mask).sum() / len(batch)
                    (loss * means.scale / recipe.accumulate).backward()
                total += float(loss.detach())
        return total

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

    def noised(self, latents: Tensor, generator: torch.Generator) -> Noised:
        recipe, backbone = self.recipe, self.backbone
        return noised(latents, backbone.alphas_cumprod, backbone.prediction, generator, recipe.noise_offset, recipe.min_snr)

    def latent(self, index: int, flipped: bool, rng: random.Random) -> tuple[Tensor, Tensor | None]:
        """Latent ``[4, h, w]`` of a picture and its mask ``[1, h, w]``; kept where the picture looks the same at every draw."""
        picture, mask = self.data.draw(index, flipped, rng)
        latent = self.latents.get((index, flipped))
        if latent is None:
            latent = self.backbone.encode_image(picture[None].to(self.backbone.device))[0].float()
            if self.data.fixed:
                self.latents[index, flipped] = latent
        return latent, None if mask is None else F.interpolate(mask[None], latent.shape[-2:], mode="area")[0]

    def text(self, texts: Sequence[str]) -> Text:
        """Texts encoded for every layer. Once the words are learned each text is encoded by itself, and kept."""
        tables = self.learner.tables(self.words)
        if self.learner.words_learn:
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

    def concept(self, name: str) -> Concept:
        """What was learned so far."""
        recent = self.losses[-50:]
        settings = asdict(self.recipe) | {
            "templates": len(self.recipe.templates),
            "pictures": len(self.data),
            "loss": sum(recent) / len(recent),
        }
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
            settings,
            self.learner.layers,
        )
