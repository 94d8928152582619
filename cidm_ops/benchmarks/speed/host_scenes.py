"""Doodle scenes painted and scored inside a ComfyUI: ``python host_scenes.py PACK OUT FOLDER SCENES SEEDS WAYS JUDGE``.

FOLDER has the captions' embeddings and keeps every score, and pictures of the first scenes; what is there is not painted again, unless the
judge of parts has not read it.
"""

import json
from pathlib import Path

from in_host import ARGUMENTS, CLOCK, PACK, hooked, tell

# isort: split

import comfy.sample
import folder_paths
import torch
from pack.cidm_ops.bank.bank import Bank
from pack.cidm_ops.bank.files import write_atomically
from pack.cidm_ops.benchmarks.speed.compositions import compositions
from pack.cidm_ops.benchmarks.speed.scenes import CAPTIONS, SHOWN
from pack.cidm_ops.doodle.concepts import CONCEPTS, examples
from pack.cidm_ops.doodle.style import PLACES
from pack.cidm_ops.doodle.world import Scene, render
from pack.cidm_ops.engines.doodle import DoodleReader, DoodleTower
from pack.cidm_ops.engines.parts import fingerprint_of, load_judge
from pack.cidm_ops.evaluation.parts import identity_by_parts, look_of
from pack.cidm_ops.measure.crops import crop
from pack.cidm_ops.measure.presence import Presence, collapse_bound
from pack.cidm_ops.measure.scores import embed, text_alignment
from pack.cidm_ops.method.regions import RegionMask, box_mask
from pack.cidm_ops.models.sd import DOODLE
from pack.cidm_ops.painting.compose import AggregationConfig, mix
from pack.cidm_ops.painting.composition import compose_regions
from pack.cidm_ops.painting.config import PRESETS, NoiseEstimation
from pack.cidm_ops.painting.paint import unit_noise
from pack.nodes import native, patches
from pack.nodes.host import ComfyBackbone
from PIL import Image
from safetensors.torch import load_file

FOLDER, WAYS = Path(ARGUMENTS[0]), ARGUMENTS[3].split(",")
SCENES, SEEDS = map(int, ARGUMENTS[1:3])
JUDGE = load_judge(ARGUMENTS[4])
READ_BY = fingerprint_of(JUDGE)
SAMPLER, SCHEDULER, STEPS, GUIDANCE = "dpmpp_2m", "karras", 8, 3.0
BANK = Path(PACK) / "cidm_ops" / "doodle" / "ten"
NOTHING = "nothing"
MORE = 1.5  # guidance in regions, times that of the sampler
# "tenth": passes while it is decided what stands where, each before plain background
NOISE = {**PRESETS, "tenth": NoiseEstimation(end=0.1, bootstrap=0.1, features=True)}


class Studio:
    """Doodle, its ten concepts, and the ways to paint several of them."""

    def __init__(self):
        self.model, self.clip, self.vae = native.model(), native.clip(), native.vae()
        self.backbone, self.bank = ComfyBackbone(self.model, self.clip), Bank(BANK)
        self.tower, self.reader = DoodleTower(), DoodleReader()
        pictures = {name: [e.picture for e in examples(c, 16, seed=1)] for name, c in CONCEPTS.items()}
        pictures[NOTHING] = [render(Scene((), place, seed=i))[0] for place in PLACES for i in range(3)]
        self.references = {name: embed(self.tower, self.signed(shown)) for name, shown in pictures.items()}
        self.presence = Presence(self.references)

    @staticmethod
    def signed(pictures):
        return torch.stack([torch.from_numpy(p) for p in pictures]).permute(0, 3, 1, 2).float() / 127.5 - 1

    def mixed(self, prompt):
        return mix(self.backbone, self.bank, prompt)

    def said(self, prompt):
        return patches.conditioning(self.clip, [self.mixed(prompt)])

    def setting(self, way, scene):
        """The model, the positive and the negative text of a way."""
        nothing = self.said("")
        if way == "plain":
            return self.model, self.said(scene.plain), nothing
        if way == "merged":
            return patches.merge(self.model, self.mixed(scene.handled).factors(self.backbone)), self.said(scene.handled), nothing
        if way == "hooks":
            return patches.merge(self.model, {}), *self.hooks(scene, nothing)
        regions = [(part, RegionMask(box_mask(*box))) for part, box in zip(scene.parts, scene.boxes, strict=True)]
        how = AggregationConfig(inside=MORE if "guided" in way else 1.0)
        composition = compose_regions(self.backbone, self.bank, scene.plain, regions, how)
        return *patches.in_regions(self.backbone, composition, NOISE[way.removesuffix(" guided")]), nothing

    def hooks(self, scene, nothing):
        """The host's own way, with the layer-wise words for each region."""
        parts = [
            (box_mask(*box), self.bank.file(name).name, self.said(part), nothing)
            for name, box, part in zip(scene.names, scene.boxes, scene.parts, strict=True)
        ]
        return hooked(parts, (self.said(scene.plain), nothing))

    def paint(self, way, scene):
        """Pictures ``[SEEDS, 3, H, W]`` in [-1, 1], and the seconds that sampling took."""
        width, height = scene.size
        noise = unit_noise(DOODLE, 0, SEEDS, height, width)
        model, positive, negative = self.setting(way, scene)
        began = CLOCK()
        latent = comfy.sample.sample(
            model, noise, STEPS, GUIDANCE, SAMPLER, SCHEDULER, positive, negative, torch.zeros_like(noise), seed=0, disable_pbar=True
        )
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = CLOCK() - began
        return self.vae.decode(latent).clamp(0, 1).permute(0, 3, 1, 2).cpu() * 2 - 1, seconds

    def score(self, scene, picture, caption):
        """Score each concept: whether it is found in its box, in how many others, and the likeness in its own and identity by parts
        there; and the whole: text alignment.
        """
        cut = [crop(picture, box_mask(*box))[None] for box in scene.boxes]
        seen = torch.cat([embed(self.tower, part) for part in cut])
        found, like = self.presence.found(seen), self.presence.cosines(seen)
        whole = embed(self.reader, picture[None])
        right = [identity_by_parts(JUDGE, look_of(name), part) for name, part in zip(scene.names, cut, strict=True)]
        return {
            "parts": [round(float(one.nanmean()), 4) for one in right],
            "judge": READ_BY,
            "present": [f == name for f, name in zip(found, scene.names, strict=True)],
            "bleed": [sum(f == name for f in found[:u] + found[u + 1 :]) for u, name in enumerate(scene.names)],
            "ia": [round(float(row[self.presence.names.index(name)]), 4) for row, name in zip(like, scene.names, strict=True)],
            "ta": round(text_alignment(whole, caption[None]), 4),
        }


def main():
    folder_paths.add_model_folder_path("loras", str(BANK))
    file = FOLDER / "scores.json"
    scores = json.loads(file.read_text()) if file.exists() else {}
    studio, captions = Studio(), load_file(FOLDER / CAPTIONS)["captions"]
    for i, scene in enumerate(compositions(SCENES)):
        for way in WAYS:
            known = scores.get(f"{way} {i}", ())
            if len(known) >= SEEDS and all(score.get("judge") == READ_BY for score in known[:SEEDS]):
                continue
            with torch.inference_mode():  # as the executor does
                pictures, seconds = studio.paint(way, scene)
                time = {"seconds": round(seconds / SEEDS, 4)}
                scores[f"{way} {i}"] = [studio.score(scene, picture, captions[i]) | time for picture in pictures]
            if i < SHOWN:
                pixels = ((pictures[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
                Image.fromarray(pixels).save(FOLDER / f"{way}-{i}.png")
        write_atomically(json.dumps(scores).encode(), file)
    bound = collapse_bound(studio.references)
    tell({"sampler": f"{SAMPLER} {SCHEDULER}", "steps": STEPS, "guidance": GUIDANCE, "collapse_bound": bound})


main()
