"""Simple sampling: Euler on the "normal" schedule, step for step what ComfyUI's KSampler does with these names."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backbone import Backbone, TransformerBackbone
from ..concept_text import plain
from ..method.guidance import two_terms
from ..tokens import Text, join

WHOLE = 0.9999  # the sampling, as the host has it
# x [B, C, h, w], t [B], the text [B, N, C], pooled, and into how many chunks of the same images the batch is divided
Predict = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]


@torch.no_grad()
def sample(
    backbone: Backbone | TransformerBackbone,
    text: Text,
    negative: Text,
    noise: Tensor,
    *,
    steps: int = 25,
    guidance: float = 5.0,
    predict: Predict | None = None,
    weigh: Callable[[Tensor], Tensor | float] | None = None,
    before: Text | None = None,
    beside: tuple[Text, float] | None = None,
    start: float = math.inf,
    hold: Callable[[Tensor, float], Tensor] = lambda x, level: x,
    over: Tensor | None = None,
    denoise: float = 1.0,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> Tensor:
    """Latents ``[B, C, h, w]`` from unit Gaussian ``noise`` of that shape.

    Classifier-free guidance ``negative + guidance * (text - negative)`` on the denoised estimate, times ``weigh(x)`` at each cell if there
    is any. Where that is the text's alone, guidance 1 everywhere and no third text, the negative one is not computed.
    ``predict`` stands in for the backbone's. While the ratio of noise to signal is above ``start``, the text is ``before``.
    ``beside`` is a third text and its own guidance, ``two_terms``.
    ``hold(x, level)`` is what is gone on with instead of the sampler's variable ``x`` at each noise level.

    The picture is painted ``over`` clean latents ``[B, C, h, w]`` if there are any; with ``denoise`` below 1 in as many steps of that last
    part of the sampling.
    """
    schedule = backbone.schedule
    every = whole_steps(steps, denoise)
    levels, timesteps = (s[-count:].to(noise.device) for s, count in zip(schedule.levels(every), (steps + 1, steps), strict=True))
    x = schedule.scale_noise(noise, levels[0]) if denoise > WHOLE else schedule.noised(torch.zeros_like(noise), noise, levels[0])
    if over is not None:
        x = x + schedule.noised(over, torch.zeros_like(over), levels[0])
    x = hold(x, float(levels[0]))
    third, second = beside if beside and beside[1] else (None, 0.0)
    others = [negative] if third is None else [negative, third]
    if guidance == 1 and weigh is None and third is None:
        others = []
    said, ratios = side_by_side([text, *others]), schedule.ratios()
    earlier = None if before is None else side_by_side([before, *others])
    predict = predict or default_predict(backbone)
    for i, t in enumerate(timesteps):
        texts = earlier if earlier is not None and float(ratios[int(t)]) > start else said
        scaled = schedule.scale_input(x, levels[i])
        outputs: list[Tensor] = []
        for read, pooled in texts:
            own = torch.cat([scaled] * (len(read) // len(x)))
            outputs += predict(own, t.expand(len(own)), read, pooled, len(own) // len(x)).chunk(len(own) // len(x))
        denoised, *against = (schedule.denoised(x, o, levels[i]) for o in outputs)
        if against:
            alone = None if third is None else against[1]
            denoised = two_terms(against[0], denoised, alone, guidance * (weigh(x) if weigh else 1.0), second)
        x = hold(x + (x - denoised) / levels[i] * (levels[i + 1] - levels[i]), float(levels[i + 1]))
        on_step(i + 1, steps)
    return x


def whole_steps(steps: int, denoise: float) -> int:
    """How many steps a whole sampling has of which ``steps`` are the last part, ``denoise``."""
    return steps if denoise > WHOLE else int(steps / denoise)


def side_by_side(texts: Sequence[Text]) -> list[tuple[Tensor, Tensor | None]]:
    """What the model reads: all texts in one batch, or, of different length, each in one of its own; and their pooled states."""
    together = len({t.states.shape[2] for t in texts}) == 1
    return [(t.rows, t.pooled) for t in ([join(texts)] if together else texts)]


def default_predict(backbone: Backbone | TransformerBackbone) -> Predict:
    """Return the backbone's own prediction."""
    if isinstance(backbone, TransformerBackbone):
        return lambda x, t, text, pooled, chunks: backbone.predict(x, t, plain(text), pooled)
    return lambda x, t, text, pooled, chunks: backbone.predict(x, t, text, pooled)


def denoiser(backbone: Backbone, text: Text, predict: Predict | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that tells what the model takes for clean behind ``x = x_0 + ratio n``, ``[B, C, h, w]`` at one ratio of noise to
    signal, without guidance.

    ``predict`` stands in for the backbone's.
    """
    model, schedule = predict or default_predict(backbone), backbone.schedule

    @torch.no_grad()
    def clean(x: Tensor, ratio: Tensor) -> Tensor:
        t = schedule.nearest(ratio).to(x.device)
        texts = text.expand(len(x))
        own, level = schedule.level_of(x, ratio)
        output = model(schedule.scale_input(own, level), t.expand(len(x)), texts.context, texts.pooled, len(x))
        return schedule.denoised(own, output, level)

    return clean
