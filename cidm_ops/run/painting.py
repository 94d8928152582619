"""From a prompt and a bank to pictures, on any backbone."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..adapters import attached
from ..backbone import Backbone
from ..bank.bank import Bank
from ..method.aggregation import Rule
from .infusion import Way, infuse, predictor
from .prompt import Said, encode
from .sampling import sample


@torch.no_grad()
def paint(
    backbone: Backbone,
    bank: Bank,
    prompt: str,
    noise: Tensor,
    *,
    negative: str = "",
    mode: str = "exact",
    strength: float = 1.0,
    rule: Rule | None = None,
    steps: int = 25,
    guidance: float = 5.0,
    infusion: Way | None = None,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> tuple[Tensor, list[str]]:
    """Pictures ``[B, 3, 8h, 8w]`` in [-1, 1] from unit Gaussian ``noise [B, 4, h, w]``, and warnings about the concepts' base.

    ``mode``, ``strength`` and ``rule`` are those of the aggregation (CIDM 3.2), ``infusion`` says how residuals act.
    Raises ``ValueError`` for a word that no concept of the bank has and for a concept of another architecture.
    """
    way = infusion or Way()
    mixture, charges = infuse(backbone, bank, prompt, mode, strength, rule, layers=way.layers)
    here = {name: f.to(backbone.device) for name, f in mixture.factors(backbone).items()}
    wanted, unwanted = (encode(backbone, said).expand(len(noise)) for said in (mixture, Said(negative)))
    predict = predictor(backbone, charges, way)
    with attached(backbone.layers, here):
        latents = sample(
            backbone, wanted, unwanted, noise.to(backbone.device), steps=steps, guidance=guidance, predict=predict, on_step=on_step
        )
    return backbone.decode_latent(latents), list(mixture.warnings)


def unit_noise(seed: int, count: int, height: int, width: int) -> Tensor:
    """Noise ``[count, 4, height/8, width/8]`` on the CPU, picture i from ``seed + i``, as ComfyUI draws it for one picture."""
    return torch.cat([torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)])
