"""Training steps outside of a host, on full-size SD1.5 with random weights: ours, and a plain loop, as diffusers' examples and sd-scripts
have it, with peft's adapters on the same layers.

The limit of all is forward and backward of the frozen U-Net, back to the text that its first cross-attention reads.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F

from ...adapters import linears
from ...engines.diffusers import DiffusersBackbone
from ...models.sd import SD1
from ...tokens import encode_layerwise
from ...training.dataset import Dataset
from ...training.memory import has_bf16
from ...training.method import Task
from ...training.methods import configure
from ...training.trainer import Trainer
from .models import random_backbone
from .reading import read_texts
from .timing import figures, interleave, machine, ratio

RANK = 4


def run_loops(rounds: int, pixels: int) -> dict[str, Any]:
    """Measure a step of one picture on every side: with words that learn, with words that have stopped, by peft, and the limit; and ratios
    of time.
    """
    backbone = random_backbone(SD1, torch.bfloat16 if has_bf16(torch.device("cpu")) or torch.cuda.is_available() else torch.float32)
    sides = {
        "loop_words": our_step(backbone, pixels, norm_stop=1e9),
        "loop_frozen": our_step(backbone, pixels, norm_stop=0.0),
        "loop_peft": peft_step(backbone, pixels),
        "loop_limit": limit_step(backbone, pixels),
    }
    times = interleave(sides, rounds)
    ratios = {
        "words_to_limit": ratio(times, "loop_words", "loop_limit"),
        "frozen_to_limit": ratio(times, "loop_frozen", "loop_limit"),
        "peft_to_limit": ratio(times, "loop_peft", "loop_limit"),
        "frozen_to_peft": ratio(times, "loop_frozen", "loop_peft"),
    }
    return ratios | figures(times) | {"loop_dtype": str(backbone.dtype).removeprefix("torch.")} | machine()


def our_step(backbone: DiffusersBackbone, pixels: int, norm_stop: float) -> Callable[[], None]:
    """A step of the whole recipe. The words stop at the first step where ``norm_stop`` is 0, and all texts are read beforehand."""
    data = Dataset([torch.rand(3, pixels, pixels)], ["a dog"])
    config = configure("cidm", steps=10_000, batch=1, rank=RANK, norm_stop=norm_stop)
    run = Trainer(backbone, data, Task(name="x", class_word="dog", config=config))
    read_texts(run)

    def step() -> None:
        with run.attach():
            run.advance()

    return step


def peft_step(backbone: DiffusersBackbone, pixels: int) -> Callable[[], None]:
    """A step of a plain loop: AdamW on peft's LoRA, latents and text encoded beforehand."""
    adapted = {id(layer) for layer in linears(backbone, "cross_attention").values()}
    names = [name for name, module in backbone.unet.named_modules() if id(module) in adapted]
    unet = copy.deepcopy(backbone.unet).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names), unet)
    learned = [p for p in unet.parameters() if p.requires_grad]
    for p in learned:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(learned, 1e-4)
    context = text_of(backbone)

    def step() -> None:
        backward(backbone, unet, pixels, context)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def limit_step(backbone: DiffusersBackbone, pixels: int) -> Callable[[], None]:
    """Forward and backward of the frozen U-Net, with no parameter that learns."""
    return partial(backward, backbone, backbone.unet, pixels, text_of(backbone).requires_grad_())


@torch.no_grad()
def text_of(backbone: DiffusersBackbone) -> Tensor:
    """The text ``[1, N, C]`` of the picture."""
    return encode_layerwise(backbone, ["a dog"], {}).states[:, 0].float()


def backward(backbone: DiffusersBackbone, unet: nn.Module, pixels: int, context: Tensor) -> None:
    """Predict the noise of one picture, and take the loss's gradients."""
    device, schedule = backbone.device, backbone.schedule
    clean = torch.randn(1, *backbone.family.latent_shape(pixels, pixels), device=device)
    t = torch.randint(len(schedule.times), (1,), device=device)
    noise = torch.randn_like(clean)
    noisy = schedule.add_noise(clean, noise, t)
    with torch.autocast(device.type, backbone.dtype, enabled=backbone.dtype != torch.float32):
        guess = unet(noisy, t, context).sample
    F.mse_loss(guess.float(), schedule.target(clean, noise, t)).backward()
