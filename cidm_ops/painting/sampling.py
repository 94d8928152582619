"""Simple sampling: Euler on the "normal" schedule, step for step what ComfyUI's KSampler does with these names."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backbone import Backbone
from ..schedule import Schedule
from ..tokens import Text, join

# x [B, C, h, w], t [B], the text [B, N, C], pooled, and into how many chunks of the same images the batch is divided
Predict = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]


def levels(schedule: Schedule, steps: int) -> tuple[Tensor, Tensor]:
    """Noise levels ``[steps + 1]`` ending in 0, and the nearest trained timestep ``[steps]`` of each.

    A level is noise over signal (``sqrt((1 - abar) / abar)``), interpolated in its logarithm at evenly spaced timesteps; for a
    flow it is sigma itself.
    """
    flow = schedule.prediction == "flow"
    trained = schedule.sigma.cpu() if flow else (schedule.sigma.double() / schedule.signal.double()).float().cpu()
    t = torch.linspace(len(trained) - 1, 0, steps)
    low, high, w = t.floor().long(), t.ceil().long(), t.frac()
    scale = trained if flow else trained.log()
    chosen = (1 - w) * scale[low] + w * scale[high]
    chosen = chosen if flow else chosen.exp()
    nearest = (chosen.log()[:, None] - trained.log()[None]).abs().argmin(1)
    return torch.cat([chosen, torch.zeros(1)]), nearest


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
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> Tensor:
    """Latents ``[B, 4, h, w]`` from unit Gaussian ``noise`` of that shape.

    Classifier-free guidance ``negative + guidance * (text - negative)`` on the denoised estimate. ``predict`` stands in for the
    backbone's.
    """
    sigmas, timesteps = (s.to(noise.device) for s in levels(backbone.schedule, steps))
    flow = backbone.schedule.prediction == "flow"
    x = noise * (sigmas[0] if flow else (1 + sigmas[0] ** 2).sqrt())
    together = text.states.shape[2] == negative.states.shape[2]
    texts = [(t.rows, t.pooled) for t in ([join([text, negative])] if together else [text, negative])]
    predict = predict or plainly(backbone)
    for i, t in enumerate(timesteps):
        scaled = x if flow else x / (sigmas[i] ** 2 + 1).sqrt()
        both = torch.cat([scaled, scaled]) if together else scaled
        outputs = torch.cat([predict(both, t.expand(len(both)), read, pooled, len(both) // len(x)) for read, pooled in texts])
        output, output_negative = outputs.chunk(2)
        denoised, denoised_negative = (_denoised(backbone, x, o, sigmas[i]) for o in (output, output_negative))
        denoised = denoised_negative + guidance * (denoised - denoised_negative)
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        on_step(i + 1, steps)
    return x


def plainly(backbone: Backbone) -> Predict:
    """The backbone's own prediction."""
    return lambda x, t, text, pooled, chunks: backbone.predict(x, t, text, pooled)


def noise_levels(schedule: Schedule) -> Tensor:
    """Noise over signal of every trained timestep; infinite where there is no signal."""
    return (schedule.sigma.double() / schedule.signal.double()).float().cpu()


def denoiser(backbone: Backbone, text: Text, predict: Predict | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """What the model takes for clean behind ``x = x_0 + sigma n``, ``[B, 4, h, w]`` at one sigma, without guidance.

    ``predict`` stands in for the backbone's.
    """
    model = predict or plainly(backbone)
    trained = noise_levels(backbone.schedule)
    flow = backbone.schedule.prediction == "flow"

    @torch.no_grad()
    def clean(x: Tensor, sigma: Tensor) -> Tensor:
        t = (trained.log() - sigma.log().cpu()).abs().argmin().to(x.device)
        texts = text.expand(len(x))
        scaled = x / (1 + sigma) if flow else x / (sigma**2 + 1).sqrt()
        output = model(scaled, t.expand(len(x)), texts.rows, texts.pooled, 1)
        return _denoised(backbone, scaled, output, sigma / (1 + sigma)) if flow else _denoised(backbone, x, output, sigma)

    return clean


def _denoised(backbone: Backbone, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
    """The clean latent behind ``x = x0 + sigma n`` given epsilon or v, or behind ``x = (1 - sigma) x0 + sigma n`` given a flow."""
    if backbone.schedule.prediction == "v":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
    return x - sigma * output
