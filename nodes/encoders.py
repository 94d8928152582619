"""Embeddings of pictures by the image encoders of the host, and of captions by their text sides, for scores."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import torch
from comfy_api.latest import io
from torch import Tensor

from ..cidm_ops.measure.scores import embed_all

FEATURES = ("image_embeds", "class token", "mean of patches")

VISION = io.ClipVision.Input(
    "clip_vision", tooltip="Any image tower: CLIP for the paper's IA, DINOv2 for what is called DINO, or Doodle's."
)
FEATURE = io.Combo.Input(
    "features",
    options=list(FEATURES),
    default="image_embeds",
    tooltip="What of the tower's output is compared: image_embeds (CLIP's embedding, the class token of DINO), the class token before "
    "CLIP's projection, or the mean of its patches.",
)


def pictures_of(images: Tensor) -> list[Tensor]:
    """The host's ``[B, H, W, C]`` in [0, 1] as pictures ``[3, H, W]`` in [-1, 1]."""
    return list(images[..., :3].float().cpu().movedim(-1, 1) * 2 - 1)


def encode_images(clip_vision: comfy.clip_vision.ClipVisionModel, pictures: Sequence[Tensor], features: str = "image_embeds") -> Tensor:
    """Unit embeddings ``[N, E]`` of pictures ``[3, H, W]`` in [-1, 1]."""
    return embed_all(image_encoder(clip_vision, features), pictures).cpu()


def image_encoder(clip_vision: comfy.clip_vision.ClipVisionModel, features: str) -> Callable[[Tensor], Tensor]:
    """Pictures ``[B, 3, H, W]`` in [-1, 1] to embeddings ``[B, E]``. Raises ``ValueError`` for features that the tower does not have."""

    def embeddings(pictures: Tensor) -> Tensor:
        out = clip_vision.encode_image(pictures.movedim(1, -1) / 2 + 0.5)
        if features == "image_embeds":
            if not isinstance(out["image_embeds"], Tensor) or out["image_embeds"].ndim != 2:
                raise ValueError("this image tower has no image_embeds: choose 'mean of patches'")
            return out["image_embeds"].float()
        tokens = out["last_hidden_state"].float()
        patches = math.isqrt(tokens.shape[1]) ** 2  # a square grid; what stands before it are class and register tokens
        if features == "mean of patches":
            return tokens[:, -patches:].mean(1)
        if patches == tokens.shape[1]:
            raise ValueError("this image tower has no class token: choose 'image_embeds' or 'mean of patches'")
        return tokens[:, 0]

    return embeddings


def projection_to(clip: comfy.sd.CLIP, width: int) -> tuple[str, Any, Tensor]:
    """The name of the text encoder whose projection leads to an image tower's space, that encoder, and the projection ``[width, D]``.

    Raises ``ValueError`` where no text encoder has a projection to that width, or one that was never loaded.
    """
    parts = [(n, p) for n, p in clip.cond_stage_model.named_children() if isinstance(p, comfy.sd1_clip.SDClipModel)]
    projected = [(n, p) for n, p in parts if hasattr(p.transformer, "text_projection")]
    fitting = [(n, p) for n, p in projected if p.transformer.text_projection.weight.shape[0] == width]
    what = "load the whole text model of the same CLIP (with text_projection) with Load CLIP; for Doodle take Doodle Scorers"
    if not fitting:
        has = ", ".join(str(p.transformer.text_projection.weight.shape[0]) for _, p in projected) or "none"
        raise ValueError(f"no text encoder of this CLIP reads into the image tower's space of width {width} (widths: {has}): {what}")
    name, part = fitting[-1]
    clip.load_model()
    weight = part.transformer.text_projection.weight.float().cpu()
    size = float(weight.square().sum()) / width
    if not 0.02 < size < 50 or torch.equal(weight, torch.eye(width)):
        raise ValueError(f"the text projection of this CLIP was never loaded, checkpoints of Stable Diffusion 1 leave it out: {what}")
    return name, part, weight


def encode_captions(clip: comfy.sd.CLIP, captions: Sequence[str], width: int) -> Tensor:
    """Unit embeddings ``[N, width]`` of captions in the space of an image tower: the end state through the text projection.

    Raises what ``projection_to`` does.
    """
    name, part, _ = projection_to(clip, width)
    found = []
    for caption in captions:
        tokens = clip.tokenize(caption.replace("(", "\\(").replace(")", "\\)"))[name.removeprefix("clip_")]
        part.reset_clip_options()
        part.set_clip_options({"projected_pooled": True})
        try:
            found.append(part.encode_token_weights(tokens[:1])[1].float().cpu())
        finally:
            part.reset_clip_options()
    return torch.nn.functional.normalize(torch.cat(found), dim=-1)
