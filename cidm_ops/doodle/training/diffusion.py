"""The U-Net and its text encoder: Stable Diffusion 1 in small, trained from scratch on the latents of the world."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ...models.clip import END, VOCABULARY
from ...models.sd import DOODLE
from ...schedule import Schedule
from .alignment import align_unet
from .loop import LossAt, Optimisation, Session, in_fast_precision, train
from .tokens import Tokens

COMPILED = "reduce-overhead"  # with CUDA graphs: these networks are so small that launching their kernels takes as long as the kernels
MIDDLE, SPREAD = 0.5, 1.0  # of the logarithm of noise over signal
Guess = Callable[[Tensor, Tensor, Tensor], Tensor]  # of noised latents [B, C, h, w], at timesteps [B], by token ids [B, N]: their target


def new_unet() -> UNet2DConditionModel:
    """Three levels, cross-attention on the lower two; 8.6 M parameters."""
    return UNet2DConditionModel(**DOODLE.diffusers.model)


def text_encoder(config: Mapping[str, Any], vocabulary: int = VOCABULARY, end: int = END) -> CLIPTextModel:
    """A CLIP text model of a few layers; ``vocabulary`` rows in its token table."""
    return CLIPTextModel(CLIPTextConfig(**config, vocab_size=vocabulary, bos_token_id=0, eos_token_id=end, pad_token_id=end))


def alphas_cumprod() -> Tensor:
    """Stable Diffusion 1.5's schedule (scaled linear, 1000 steps), ``[1000]``."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


def schedule_of(prediction: str) -> Schedule:
    """The noise of a base that predicts the noise ("eps"), velocity ("v") or the straight way from noise to picture ("flow")."""
    return Schedule.straight() if prediction == "flow" else Schedule.of_alphas(alphas_cumprod(), prediction)


@dataclass(frozen=True)
class DiffusionRecipe:
    """How U-Net and text encoder are trained: what is predicted, ``gamma`` of the min-SNR weights (0: every timestep counts alike),
    pictures in a batch, and the largest learning rates of U-Net and text encoder.

    A share ``middle`` of the pictures is noised log-normally around ``MIDDLE``, where marks are settled, the others evenly over all
    timesteps. Cells with things count ``things`` times, and the distance from what a judge sees ``align`` times.
    """

    prediction: str = "v"
    gamma: float = 0.0
    batch: int = 128
    lr: float = 3e-3
    text_lr: float = 8e-4
    middle: float = 0.75
    things: float = 6.0
    align: float = 0.5


@dataclass(frozen=True)
class Pictures:
    """Pictures as a U-Net or a transformer learns from them: ``latents [N, C, h, w]``, and for ``things`` and ``align`` of the recipe which
    cells hold ``things [N, h, w]`` and the ``sights [N, S, h, w]`` of a judge.
    """

    latents: Tensor
    things: np.ndarray | None = None
    sights: Tensor | None = None


def learn_diffusion(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    pictures: Pictures,
    tokens: Tokens,
    session: Session,
    *,
    steps: int,
    recipe: DiffusionRecipe = DiffusionRecipe(),
) -> None:
    """Train both by the recipe: see ``loss_of``."""
    device = unet.device
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # plain matrix attention: the fused kernel is slow on CPU at small heads
        text.set_attn_implementation("eager")
    both = nn.ModuleDict({"unet": unet, "text": text})
    if pictures.sights is not None:
        both["alignment"] = align_unet(unet, pictures.sights.shape[1]).to(device)
    known = len(tokens.used)
    table = text.get_input_embeddings().weight
    table.register_hook(lambda g: torch.cat([g[:known], torch.zeros_like(g[known:])]))
    times = schedule_of(recipe.prediction).times.to(device)

    def guess(noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return unet(noisy, times[t], text(ids).last_hidden_state).sample

    how = Optimisation(steps, recipe.lr, muon=True, rates={"text.": recipe.text_lr})
    average = train("diffusion", both, loss_of(guess, pictures, tokens, recipe, both, device), session, how)
    with torch.no_grad():
        for k, p in both.named_parameters():
            p.copy_(average[k])


def loss_of(
    guess: Guess, pictures: Pictures, tokens: Tokens, recipe: DiffusionRecipe, parts: nn.ModuleDict, device: torch.device
) -> LossAt:
    """The loss of a model by a recipe, with caption dropout; what its ``parts`` call "alignment" is asked for the sights, if there are any.

    ``tokens.captions`` holds the same number of wordings for each picture, in order.
    """
    latents, things = pictures.latents.to(device), pictures.things
    sights = None if pictures.sights is None else pictures.sights.to(device)
    wordings, batch = len(tokens.captions) // len(latents), recipe.batch
    cells = None if things is None else 1 + (recipe.things - 1) * torch.from_numpy(things).to(device)
    schedule = schedule_of(recipe.prediction)
    everything = torch.arange(len(schedule.times))
    weight = (schedule.min_snr_weight(everything, recipe.gamma) if recipe.gamma else torch.ones(len(everything))).to(device)

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        which = rng.integers(len(latents), size=batch)
        ids = sent(tokens.batch(which * wordings + rng.integers(wordings, size=batch), rng), device)
        t = sent(torch.from_numpy(draw_timesteps(schedule, batch, recipe.middle, rng)), device)
        chosen = sent(torch.from_numpy(which), device)
        clean = latents[chosen].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        target = schedule.target(clean, noise, t)
        counts = torch.ones_like(target[:, 0]) if cells is None else cells[chosen]
        each = weight[t].view(-1, 1, 1) * counts / counts.mean()
        seen = None if sights is None else sights[chosen]
        with in_fast_precision(device):
            return score(schedule.add_noise(clean, noise, t), t, ids, target, each, seen)

    def score(noisy: Tensor, t: Tensor, ids: Tensor, target: Tensor, each: Tensor, seen: Tensor | None) -> Tensor:
        error = (guess(noisy, t, ids).float() - target).square().mean(1)
        loss = (error * each).mean()
        return loss if seen is None else loss + recipe.align * parts["alignment"](seen)

    if device.type == "cuda":
        score = torch.compile(score, mode=COMPILED)
    return loss_at


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device; the CPU does not wait until a GPU has them."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def draw_timesteps(schedule: Schedule, count: int, middle: float, rng: np.random.Generator) -> np.ndarray:
    """Timesteps ``[count]`` int64: a share ``middle`` of them log-normal in noise over signal (as in EDM, Karras et al. 2022), the others
    one in each of as many equal parts of all.
    """
    inner = round(middle * count)
    ratios = schedule.ratios().log().numpy()
    near = np.searchsorted(ratios, MIDDLE + SPREAD * rng.standard_normal(inner)).clip(0, len(ratios) - 1)
    outer = count - inner
    even = ((rng.permutation(outer) + rng.random(outer)) * len(ratios) / max(1, outer)).astype(np.int64)
    return np.concatenate([near, even])


@torch.no_grad()
def repaint(
    unet: UNet2DConditionModel, text: CLIPTextModel, latents: Tensor, ids: Tensor, prediction: str, *, steps: int = 10, last: int = 4
) -> Tensor:
    """Latents ``[N, C, h, w]`` with noise, denoised again by captions ``ids [N, L]`` in the ``last`` of so many Euler ``steps``: as the
    U-Net paints them, of pictures that are known.
    """
    schedule = schedule_of(prediction)
    device = unet.device
    levels, timesteps = schedule.levels(steps)
    first = steps - last
    generator = torch.Generator(device).manual_seed(0)
    out = []
    for part, words in zip(latents.split(256), ids.split(256), strict=True):
        clean = part.to(device).float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        ratio = schedule.ratios()[timesteps[first]].to(device)
        x, level = schedule.level_of(clean + ratio * noise, ratio)
        with in_fast_precision(device):
            context = text(words.to(device)).last_hidden_state
            for i in range(first, steps):
                t = schedule.times[timesteps[i]].to(device)
                output = unet(schedule.scale_input(x, level), t.expand(len(x)), context).sample.float()
                following = levels[i + 1].to(device)
                x = x + (x - schedule.denoised(x, output, level)) / level * (following - level)
                level = following
        out.append(x.half().cpu())
    return torch.cat(out)
