"""Painting steps with regions inside a ComfyUI: ``python host_regions.py PACK OUT CHECKPOINT ROUNDS PIXELS``.

CHECKPOINT is a file, or ``doodle`` for the model that ships. The other way is the host's own: a LoRA hook, a
mask and a text for each region, and a default for the rest.
"""

import tempfile
from pathlib import Path

from in_host import ALONE, ARGUMENTS, hooked, painter, steps, tell

# isort: split

import comfy.sd
import folder_paths
import torch
from pack.cidm_ops.adapters import linears
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.bank.concept import Concept
from pack.cidm_ops.bank.concept_file import save_concept
from pack.cidm_ops.benchmarks.speed.timing import figures, peak_memory, ratio
from pack.cidm_ops.lowrank import LowRank
from pack.cidm_ops.method.regions import RegionMask, box_mask
from pack.cidm_ops.painting.composition import compose_regions
from pack.cidm_ops.painting.config import NoiseEstimation
from pack.nodes import native
from pack.nodes.host import ComfyBackbone
from pack.nodes.patches import in_regions

CHECKPOINT = ARGUMENTS[0]
ROUNDS, PIXELS = map(int, ARGUMENTS[1:])
GRIDS = {2: (2, 1), 4: (2, 2), 8: (4, 2)}  # columns and rows
COVERED = 7 / 8  # of the picture's height; below is the global prompt
WHOLE, PART = "dogs on the beach", "a {} on the beach"


def boxes(count):
    """Disjoint boxes over most of the picture."""
    columns, rows = GRIDS[count]
    parts = [divmod(i, columns) for i in range(count)]
    return [box_mask(x / columns, COVERED * y / rows, (x + 1) / columns, COVERED * (y + 1) / rows, PIXELS) for y, x in parts]


def write_bank(backbone, folder):
    """A concept for each region, of random factors on cross-attention and random words."""
    generator = torch.Generator().manual_seed(0)
    shapes = {n: m.weight.shape for n, m in linears(backbone, "cross_attention").items()}
    width = backbone.token_table().weight.shape[1]
    for task in range(1, max(GRIDS) + 1):
        factors = {
            n: LowRank(0.01 * torch.randn(out, 4, generator=generator), torch.randn(4, inn, generator=generator))
            for n, (out, inn) in shapes.items()
        }
        tokens = {backbone.family.encoder().name: 0.02 * torch.randn(2, len(backbone.cross_attention), width, generator=generator)}
        words = (f"<c{task}.1>", f"<c{task}.2>")
        concept = Concept(
            name=f"c{task}",
            class_word="dog",
            words=words,
            factors=factors,
            tokens=tokens,
            architecture=backbone.architecture,
            fingerprint=backbone.fingerprint,
            task=task,
        )
        save_concept(concept, folder / f"c{task}.safetensors")
    return Bank(folder)


def own_way(backbone, bank, count, how=None):
    """The model in regions and its text."""
    regions = [(PART.format(f"<c{u}>"), RegionMask(mask)) for u, mask in enumerate(boxes(count), 1)]
    return in_regions(backbone, compose_regions(backbone, bank, WHOLE, regions), how)


def hooks(clip, bank, count, area="default"):
    """The positive and the negative text of the host's own way."""
    texts = said(clip, PART.format("dog")), said(clip, "")
    parts = [(mask, bank.file(f"c{u}").name, *texts) for u, mask in enumerate(boxes(count), 1)]
    return hooked(parts, (said(clip, WHOLE), said(clip, "")), area)


def said(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def watched(name, call, peaks):
    """The call, which notes the peak of its memory."""

    def measured():
        seconds = []
        peaks[f"{name}_gb"] = max(peaks.get(f"{name}_gb", 0.0), peak_memory(lambda: seconds.extend(call())))
        return seconds

    return measured


def main(folder):
    with torch.inference_mode():  # as the executor does
        if CHECKPOINT == "doodle":
            model, clip = native.model(), native.clip()
        else:
            model, clip, *_ = comfy.sd.load_checkpoint_guess_config(CHECKPOINT)
        backbone = ComfyBackbone(model, clip)
        bank = write_bank(backbone, folder)
        folder_paths.add_model_folder_path("loras", str(folder))
        negative = said(clip, "")

        def paints(patched, positive, negative=negative):
            return painter(patched, positive, negative, PIXELS, count=2)

        passes, others = {"plain": paints(model, said(clip, WHOLE))}, {}
        for count in GRIDS:
            passes[f"regions_{count}"] = paints(*own_way(backbone, bank, count))
            if count < max(GRIDS):
                others[f"blending_{count}"] = paints(*own_way(backbone, bank, count, NoiseEstimation()))
            if count > min(GRIDS):
                others[f"hooks_{count}"] = paints(model, *hooks(clip, bank, count))
                others[f"cropped_hooks_{count}"] = paints(model, *hooks(clip, bank, count, "mask bounds"))
        peaks: dict[str, float] = {}
        besides = steps({name: watched(name, call, peaks) for name, call in (passes | others).items()}, ROUNDS, warmup=0)
        times = steps(passes, 4 * ROUNDS, warmup=0)
        times = {name: besides[name] + seconds for name, seconds in times.items()}
    ratios = {f"step_ratio_{count}": ratio(times, f"regions_{count}", "plain") for count in GRIDS}
    for kind in ("hooks", "cropped_hooks"):
        for count in (4, 8):
            ratios[f"speedup_over_{kind}_{count}"] = ratio(besides, f"{kind}_{count}", f"regions_{count}")
    for count in (2, 4):  # a plain step has two evaluations, the positive text's and the negative one's
        ratios[f"blending_per_evaluation_{count}"] = round(ratio(besides, f"blending_{count}", "plain") * 2 / (2 + count), 4)
    tell(
        ratios
        | figures(times | {name: besides[name] for name in others})
        | peaks
        | {"pixels": PIXELS, "rounds": ROUNDS, "clock": "processor" if ALONE else "wall"}
    )


with tempfile.TemporaryDirectory() as scratch:
    main(Path(scratch))
