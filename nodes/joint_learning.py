"""The host's transformers as a backbone that learns: Flux, Chroma, Stable Diffusion 3.5, Lumina 2, Z-Image, Qwen-Image, Anima and Krea 2.

Their code is made for painting. While it is differentiated, kernels without a backward pass are off, and what autograd keeps is not written
over (``recompute``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy.cli_args import PerformanceFeature, args
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..cidm_ops.backbone import TransformerBackbone
from ..cidm_ops.models.module import block_in
from ..cidm_ops.recompute import keep_normalised
from .host import ComfyTransformer, adapted, differentiable, noise_schedule

ROTATION = "rms_rope_split_half"
ROOM = 4  # times the memory of painting: autograd keeps what the forward pass makes


class ComfyTransformerBackbone(ComfyTransformer, TransformerBackbone):
    """See ``TransformerBackbone``: MODEL, CLIP and VAE of the host. Raises what ``ComfyTransformer`` does."""

    def __init__(self, model: ModelPatcher, clip: comfy.sd.CLIP | None, vae: comfy.sd.VAE):
        if getattr(model, "is_dynamic", bool)():  # weights that come for a layer alone share their room, and are gone in the backward pass
            model = model.clone(disable_dynamic=True)
        super().__init__(model, clip)
        self.vae, self.room = vae, 1
        self.unet: nn.Module = model.model.diffusion_model
        self.device = model.load_device
        self.dtype: torch.dtype = model.model.manual_cast_dtype or model.model.get_dtype()
        named, family = dict(self.unet.named_modules()), self.family
        own = {block: block_in(at.module) for layer, at in self.layers.items() if (block := family.block_of(layer))}
        self.blocks = {block: named[own[block]] for block in sorted(own, key=family.place)}
        self.modules = {at.module: named[at.module] for at in self.layers.values()}
        self.schedule = noise_schedule(model.get_model_object("model_sampling"))

    @torch.no_grad()
    def read(self, text: str) -> tuple[Tensor, Tensor | None]:
        """Raises ``ValueError`` for an encoder whose hooks change with the steps."""
        found = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        if len(found) != 1:
            raise ValueError(
                "the hooks of this CLIP are scheduled, and a caption is encoded once: switch schedule_clip of SetClipHooks off"
            )
        states, more = adapted(self.model, found)[0]
        mask, pooled = more.get("attention_mask"), more.get("pooled_output")
        if mask is not None and self.family.host.text.mask and not mask.all():
            states = states[:, mask[0].bool().to(states.device)]
        return states.cpu().clone(), None if pooled is None else pooled.cpu().clone()

    def drop_encoders(self) -> None:
        """The host moves them off the device when it needs their room; what it has cached goes back to the system."""
        comfy.model_management.soft_empty_cache()

    @torch.no_grad()
    def encode_image(self, pictures: Tensor) -> Tensor:
        pixels = (pictures.movedim(1, -1) + 1) / 2
        if not self.family.frames:
            return self.model.model.process_latent_in(self.vae.encode(pixels)).to(self.device)
        latents = torch.cat([self.vae.encode(picture[None]) for picture in pixels])  # pictures of one call are frames of a film
        return self.model.model.process_latent_in(latents).to(self.device)[:, :, 0]

    @torch.no_grad()
    def decode_latent(self, latents: Tensor) -> Tensor:
        pixels = self.vae.decode(self.model.model.process_latent_out(self.framed(latents.float())))
        return pixels.reshape(-1, *pixels.shape[-3:]).movedim(-1, 1).to(self.device) * 2 - 1

    def framed(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` as the host has them: of some families with an axis of frames."""
        return latents[:, :, None] if self.family.frames else latents

    @contextmanager
    def training_mode(self, x: Tensor) -> Iterator[None]:
        """Raises ``ValueError`` where the host multiplies matrices in fp8, of which there is no backward pass."""
        if PerformanceFeature.Fp8MatrixMultiplication in (args.fast or ()):
            raise ValueError("ComfyUI runs with --fast fp8_matrix_mult, which nothing can be learned with: start it without")
        self.load(x, ROOM)
        with differentiable(self.unet), keep_normalised(self.unet), in_training(), rotated_in_python():
            yield

    def predict(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None, guidance: float | None = None) -> Tensor:
        """With the host's own conditions for the text, guidance and pooled state."""
        base, dtype = self.model.model, self.dtype
        if not torch.is_grad_enabled():
            self.load(x, 2)
        x = self.framed(x)
        own = self.family.objective.painted if guidance is None else guidance
        given: dict[str, Any] = {"cross_attn": context, "pooled_output": pooled, "guidance": own, "noise": x, "device": x.device}
        if self.family.host.text.count:
            given["attention_mask"] = torch.ones(1, context.shape[1], dtype=torch.long, device=x.device)  # the host counts in one
        conditions = {
            name: cond.process_cond(batch_size=len(x), device=x.device, area=None).cond for name, cond in base.extra_conds(**given).items()
        }
        more = {name: converted(value, dtype, x.device) for name, value in conditions.items() if name != "c_crossattn"}
        sigma = self.schedule.sigma.to(x.device)[t.to(x.device)]
        times = base.process_timestep(base.model_sampling.timestep(sigma).float(), x=x, **more)
        text = conditions["c_crossattn"].to(x.device, dtype)
        found = self.unet(x.to(dtype), times, context=text, control=None, transformer_options={}, **more).float()
        return found[:, :, 0] if self.family.frames else found

    def free_memory(self) -> None:
        """The host unloads all models and next time keeps twice the room free for a step."""
        self.room *= 2
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()

    def load(self, x: Tensor, times: int) -> None:
        """Have the host load the model whole, since weights that it brings for a layer alone are gone in the backward pass, with room for a
        batch of ``times`` that of ``x``.
        """
        needed = self.model.memory_required([self.room * times * len(x), *x.shape[1:]])
        whole = torch.is_grad_enabled()
        comfy.model_management.load_models_gpu([self.model], memory_required=needed, force_full_load=whole)


def converted(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A condition as the model reads it: numbers with a fraction in its precision."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


@contextmanager
def rotated_in_python() -> Iterator[None]:
    """Rotate queries and keys by the kernel's version in Python: of Anima the host does not ask whether it needs a backward pass."""
    kernels: Any = getattr(getattr(comfy, "quant_ops", None), "ck", None)
    before = getattr(kernels, ROTATION, None)
    if before is None:
        yield
        return
    setattr(kernels, ROTATION, getattr(kernels.backends.eager, ROTATION))
    try:
        yield
    finally:
        setattr(kernels, ROTATION, before)


@contextmanager
def in_training() -> Iterator[None]:
    """Tell the host, where it asks, that its kernels need a backward pass."""
    if not hasattr(comfy.model_management, "in_training"):
        yield
        return
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
