"""Diffusers' own pipelines of the tiny transformers, by family; that of Anima is in steps."""

from diffusers import (
    ChromaPipeline,
    Flux2KleinPipeline,
    FluxPipeline,
    Krea2Pipeline,
    Lumina2Pipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)

PIPELINES = {"flux1": FluxPipeline, "chroma": ChromaPipeline, "lumina2": Lumina2Pipeline, "zimage": ZImagePipeline}
PIPELINES |= {
    "qwenimage": QwenImagePipeline,
    "sd3": StableDiffusion3Pipeline,
    "flux2": Flux2KleinPipeline,
    "krea2": Krea2Pipeline,
}
