"""Simple sampling: Euler on the "normal" schedule, step for step what ComfyUI's KSampler does with these names."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backbone import Backbone
from ..tokens import Text, join

# x [B, C, h, w], t [B], the text [B, N, C], pooled, and into how many chunks of the same images the batch is divided
Predict = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]


@torch.no_grad()
def sample(
    backbone: Backbone,
    text: Text,
    negative: Text,
    noise: Tensor,
    *,
    steps: int = 25,
    guidance: float = 5.0,
    predict: Predict | None = None,
    hold: Callable[[Tensor, float], Tensor] = lambda x, level: x,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> Tensor:
    """Latents ``[B, C, h, w]`` from unit Gaussian ``noise`` of that shape.

    Classifier-free guidance ``negative + guidance * (text - negative)`` on the denoised estimate. ``predict`` stands in for the
    backbone's; ``hold(x, level)`` is what is gone on with instead of the sampler's variable ``x`` at each noise level.
    """
    schedule = backbone.schedule
    levels, timesteps = (s.to(noise.device) for s in schedule.levels(steps))
    x = hold(schedule.scale_noise(noise, levels[0]), float(levels[0]))
    together = text.states.shape[2] == negative.states.shape[2]
    texts = [(t.rows, t.pooled) for t in ([join([text, negative])] if together else [text, negative])]
    predict = predict or default_predict(backbone)
    for i, t in enumerate(timesteps):
        scaled = schedule.scale_input(x, levels[i])
        both = torch.cat([scaled, scaled]) if together else scaled
        outputs = torch.cat([predict(both, t.expand(len(both)), read, pooled, len(both) // len(x)) for read, pooled in texts])
        output, output_negative = outputs.chunk(2)
        denoised, denoised_negative = (schedule.denoised(x, o, levels[i]) for o in (output, output_negative))
        denoised = denoised_negative + guidance * (denoised - denoised_negative)
        x = hold(x + (x - denoised) / levels[i] * (levels[i + 1] - levels[i]), float(levels[i + 1]))
        on_step(i + 1, steps)
    return x


def default_predict(backbone: Backbone) -> Predict:
    """Return the backbone's own prediction."""
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
