"""What layer-wise words cost: the share of a whole default run that goes into text encoding, on SD1.5 and SDXL in full size.

Each phase of a step is timed by itself and the run is added up from them: steps until the words reach their norm encode
and differentiate the texts of a batch; after that each text is encoded once and kept.
"""

from typing import Any

import torch

from ...engines.diffusers import DiffusersBackbone
from ...models.family import Family
from ...models.sd import SD1, SDXL
from ...training.captions import OBJECT_TEMPLATES
from ...training.dataset import Dataset
from ...training.memory import has_bf16
from ...training.method import Task
from ...training.methods import configure
from ...training.trainer import Trainer
from .models import random_backbone
from .timing import figures, interleave, machine

CAPTIONS = 5  # pictures of a concept, a caption each
CAPTION = "a dog on the grass in front of a red house, number {}"
DEFAULTS = configure("cidm")
NOUN_NORM = 0.39  # a row of CLIP-L's token table
MOST = 8  # variants encoded at once by the naive way; SDXL's 70 would not fit


def run(rounds: int = 5, sd15_pixels: int = 512, sdxl_pixels: int = 1024) -> dict[str, Any]:
    """Shares of text encoding: of the whole run, before the words stop, after it, and of the naive way: every layer its own variant,
    encoded whole, in all steps. Random weights; the words stop at the step at which those of SD1.5 do when trained at 64 pixels.
    """
    stop = steps_until_stop()
    out: dict[str, Any] = {"steps": DEFAULTS.steps, "batch": DEFAULTS.batch, "stop_step": stop}
    for name, family, pixels, turns in (("sd15", SD1, sd15_pixels, rounds), ("sdxl", SDXL, sdxl_pixels, max(1, rounds // 2))):
        out |= {f"{name}_{key}": value for key, value in family_shares(family, pixels, turns, stop).items()}
    return out | {"frozen_share": max(out["sd15_frozen_share"], out["sdxl_frozen_share"])} | machine()


def new_run(backbone: DiffusersBackbone, pixels: int, **settings: Any) -> Trainer:
    data = Dataset([torch.rand(3, pixels, pixels) for _ in range(CAPTIONS)], [CAPTION.format(i) for i in range(CAPTIONS)])
    return Trainer(backbone, data, Task(name="x", class_word="dog", config=configure("cidm", **settings)))


def base(family: Family) -> DiffusersBackbone:
    """A random model in the precision that training computes in here, its token rows of the norm that real ones have."""
    backbone = random_backbone(family, torch.bfloat16 if has_bf16(torch.device("cpu")) or torch.cuda.is_available() else torch.float32)
    for text in backbone.texts.values():
        weight = text.get_input_embeddings().weight
        weight.data.mul_(NOUN_NORM / float(weight[:1000].float().norm(dim=1).mean()))
    return backbone


def steps_until_stop() -> int:
    run = new_run(base(SD1), 64)
    with run.attach():
        while run.learner.words_learn and not run.done:
            run.advance()
    return run.step


def family_shares(family: Family, pixels: int, rounds: int, stop: int) -> dict[str, Any]:
    backbone = base(family)
    learning, frozen = new_run(backbone, pixels), new_run(backbone, pixels, checkpointing=pixels > 512)
    frozen.learner.freeze_words()
    texts = [OBJECT_TEMPLATES[0].replace("{}", learning.batches.captions[i]) for i in range(DEFAULTS.batch)]
    latent = torch.randn(family.latent_shape(pixels, pixels), device=backbone.device)
    frozen.batches.latents = {(i, False): latent for i in range(CAPTIONS)}
    for template in OBJECT_TEMPLATES:  # the U-Net is timed without its texts: one stands for all
        for caption in frozen.batches.captions:
            frozen.learner.kept_texts[template.replace("{}", caption)] = frozen.learner.encode(texts[:1])

    def unet() -> None:
        with frozen.attach():
            frozen.advance()

    def words() -> None:
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=learning.plan.bf16):
            learning.learner.encode(texts).states.square().mean().backward()

    def constant() -> None:
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=frozen.plan.bf16):
            frozen.learner.kept_texts.pop(texts[0], None)
            frozen.learner.encode(texts[:1])

    layers = len(backbone.cross_attention)
    naive_part = min(layers, MOST)
    times = interleave({"unet": unet, "words": words, "constant": constant, "naive": lambda: naive(learning, naive_part)}, rounds)
    seconds = {name: figures({name: t})[f"{name}_seconds"] for name, t in times.items()}
    u, w = seconds["unet"], seconds["words"]
    n = seconds["naive"] * layers / naive_part * len(texts)
    steps, kept = DEFAULTS.steps, CAPTIONS * len(OBJECT_TEMPLATES) * seconds["constant"]
    return {
        "share": round((stop * w + kept) / (steps * u + stop * w + kept), 4),
        "before_stop_share": round(w / (u + w), 4),
        "frozen_share": round(kept / ((steps - stop) * u + kept), 5),
        "naive_share": round(n / (u + n), 4),
        "pixels": pixels,
        "rounds": rounds,
        "variants": 1 + max(learning.learner.layers),
        "texts": CAPTIONS * len(OBJECT_TEMPLATES),
    } | figures(times)


def naive(run: Trainer, variants: int) -> None:
    """One text in so many variants, encoded whole and differentiated, as if every layer had its own."""
    backbone, loss = run.backbone, torch.zeros(())
    for encoder in backbone.encoders:
        ids = backbone.tokenize(CAPTION.format(next(iter(backbone.family.placeholders))), encoder)[:1].expand(variants, -1)
        rows = backbone.token_rows(ids, encoder).clone().requires_grad_()
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=run.plan.bf16):
            loss = loss + backbone.encode_text(ids, rows, encoder)[0].square().mean().cpu()
    loss.backward()
