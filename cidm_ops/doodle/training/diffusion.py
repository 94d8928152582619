"""The U-Net and its text encoder: Stable Diffusion 1 in small, trained from scratch on the latents of the world."""

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ...models.clip import END, START, VOCABULARY
from ...models.sd import DOODLE
from ..files import ENCODER, TEXT_CONFIG
from .loop import Optimisation, Session, in_fast_precision, train

CONTEXT = TEXT_CONFIG["hidden_size"]
RARE = 1024
BATCH, LR = 64, 1e-3


def new_unet() -> UNet2DConditionModel:
    """10.9 M parameters: three levels of 64, 128, 192 channels, cross-attention on the lower two."""
    return UNet2DConditionModel(**DOODLE.diffusers.model)


def new_text_encoder(vocabulary: int = VOCABULARY, end: int = END) -> CLIPTextModel:
    """A CLIP text model of two layers; ``vocabulary`` rows in its token table."""
    return CLIPTextModel(
        CLIPTextConfig(
            **TEXT_CONFIG,
            vocab_size=vocabulary,
            bos_token_id=0,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def alphas_cumprod() -> Tensor:
    """Stable Diffusion 1.5's schedule (scaled linear, 1000 steps), ``[1000]``."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


class Tokens:
    """Caption token ids in a compact table: the words of the world, then ``RARE`` rows that stand for all others.

    Rare rows are never trained. They turn up in captions as words without meaning, so that a word the world does not
    use stays neutral, whatever its random row in the shipped table.
    """

    def __init__(self, ids: list[list[int]]):
        used = sorted({START, END}.union(*map(set, ids)))
        self.used = torch.tensor(used)
        compact = {t: i for i, t in enumerate(used)}
        self.bos, self.end = compact[START], compact[END]
        self.captions = [np.array([compact[t] for t in row]) for row in ids]
        self.vocabulary = len(used) + RARE

    def batch(self, which: np.ndarray, rng: np.random.Generator, dropout: float = 0.1, rare: float = 0.12) -> Tensor:
        """Padded ids ``[B, N]``: some captions dropped, some with meaningless words in between."""
        out = np.full((len(which), ENCODER.chunk), self.end)
        out[:, 0] = self.bos
        for row, n in zip(out, which, strict=True):
            words = self.captions[n]
            if rng.random() < dropout:
                continue
            if rng.random() < rare:
                words = np.insert(words, rng.integers(len(words)), rng.integers(len(self.used), self.vocabulary, rng.integers(1, 4)))
            row[1 : 1 + len(words)] = words[: ENCODER.room]
        return torch.from_numpy(out)


def learn_diffusion(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    latents: Tensor,
    tokens: Tokens,
    session: Session,
    *,
    steps: int,
) -> None:
    """Train both with epsilon prediction, min-SNR weights (gamma 5) and caption dropout.

    ``latents`` is ``[N, C, 16, 16]``; ``tokens.captions`` holds the same number of wordings for each, in order.
    """
    device = unet.device
    unet.set_attn_processor(AttnProcessor())  # plain matrix attention: the fused kernel is slow on CPU at small heads
    both = nn.ModuleDict({"unet": unet, "text": text})
    known = len(tokens.used)
    table = text.get_input_embeddings().weight
    table.register_hook(lambda g: torch.cat([g[:known], torch.zeros_like(g[known:])]))
    wordings = len(tokens.captions) // len(latents)
    abar = alphas_cumprod().to(device)
    snr = abar / (1 - abar)
    weight = snr.clamp(max=5.0) / snr

    def loss_at(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        which = rng.integers(len(latents), size=BATCH)
        ids = tokens.batch(which * wordings + rng.integers(wordings, size=BATCH), rng).to(device)
        clean = latents[torch.from_numpy(which)].to(device).float()
        t = torch.from_numpy(((rng.permutation(BATCH) + rng.random(BATCH)) * 1000 / BATCH).astype(np.int64)).to(device)
        eps = torch.randn(clean.shape, generator=generator, device=device)
        a = abar[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * eps
        with in_fast_precision(device):
            context = text(ids).last_hidden_state
            guess = unet(noisy, t, context).sample
        return (weight[t] * (guess.float() - eps).pow(2).mean((1, 2, 3))).mean()

    average = train("diffusion", both, loss_at, session, Optimisation(steps, LR, muon=True))
    with torch.no_grad():
        for k, p in both.named_parameters():
            p.copy_(average[k])
