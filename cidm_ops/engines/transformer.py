"""Transformers that join text and image through diffusers, to learn on and to paint with: Flux.1, Chroma, Lumina 2, Z-Image, Qwen-Image,
Stable Diffusion 3.5, Flux.2 Klein.

The text encoders are loaded when a text is read and let go when all are, since they are as large as the model. Never downloads.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderTiny,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from ..backbone import TransformerBackbone
from ..fingerprint import fingerprint
from ..models.family import Family, families, family_of
from ..models.module import Slice, flat
from ..schedule import Schedule
from .folder import read_config, variant
from .several_texts import read_several

FP8 = torch.float8_e4m3fn
KINDS = (AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderTiny)
AUTOENCODERS: Mapping[str, Any] = {kind.__name__: kind for kind in KINDS}


class DiffusersTransformer(TransformerBackbone):
    """See ``TransformerBackbone``. The weights are frozen and computed with in ``dtype``; in fp8 those of the blocks are kept so, and
    computed with in bf16, on the processor in fp32. What goes in and out is fp32.
    """

    def __init__(self, folder: Path, unet: nn.Module, vae: nn.Module, shift: float, device: torch.device, dtype: torch.dtype):
        known = family_in(unet.config)  # type: ignore[arg-type]
        computed = (torch.float32 if device.type == "cpu" else torch.bfloat16) if dtype == FP8 else dtype
        for module in (unet, vae):
            nn.Module.to(module, device, computed).requires_grad_(False).eval()
        self.unet, self.vae, self.folder = unet, vae, folder
        self.device, self.dtype, self.schedule = device, computed, Schedule.straight(shift)
        linears: dict[str, Any] = {name: m for name, m in unet.named_modules() if isinstance(m, nn.Linear)}
        self.modules = linears
        named = {name: m for name, m in linears.items() if known.files.read_layer(flat(name)) == name}
        layers = {name: Slice(name, 0, m.out_features, m.in_features) for name, m in named.items()}
        architecture = known.architecture_of(layers)
        self.blocks = {name: unet.get_submodule(name) for name in sorted({known.block_of(n) for n in layers} - {""}, key=known.place)}
        sites = known.sites(self.blocks, "joint")
        queries = [part for block in known.meeting(self.blocks) for part in known.queries(block)]
        print_of = fingerprint([linears[name].weight for name in (queries[0], queries[-1])])
        super().__init__(family_of(architecture), architecture, layers, dict.fromkeys(sites), fingerprint=print_of)
        self.size = self.family.size  # pixels of a side that the base was made for
        self.encoders_loaded: dict[str, Any] = {}
        if dtype == FP8:
            for name in filter(known.block_of, layers):
                keep_in_fp8(self.modules[name])

    @torch.no_grad()
    def read(self, text: str) -> tuple[Tensor, Tensor | None]:
        how, ids = self.family.diffusers.reader, self.all_ids(text)
        masked: dict[str, Any] = {}
        if how.layers:
            said = torch.arange(ids.shape[1]) < self.own_ids(text).shape[1]
            masked["attention_mask"] = said[None].long().to(self.device)
        found = self.part(how.states)(input_ids=ids.to(self.device), output_hidden_states=bool(how.layers) or how.layer != -1, **masked)
        if how.layers:
            states = torch.cat([found.hidden_states[layer] for layer in how.layers], -1)
        else:
            states = found.last_hidden_state if how.layer == -1 else found.hidden_states[how.layer]
        states, pooled = states[:, how.cut :].cpu(), None
        if how.pooled[0]:
            pooled = self.read_clip(text, *how.pooled).pooler_output.cpu()
        if how.beside:
            clips = [self.read_clip(text, *names) for names in how.beside]
            front = torch.cat([one.hidden_states[-2] for one in clips], -1).cpu()
            states = torch.cat([F.pad(front, (0, states.shape[-1] - front.shape[-1])), states], 1)
            pooled = torch.cat([one.text_embeds for one in clips], -1).cpu()
        return states, pooled

    def read_clip(self, text: str, encoder: str, tokenizer: str) -> Any:
        """What a CLIP of the folder makes of a text, in one chunk."""
        own = self.part(tokenizer)
        given = own(text, padding="max_length", truncation=True, max_length=own.model_max_length, return_tensors="pt")
        return self.part(encoder)(given.input_ids.to(self.device), output_hidden_states=True)

    def tokenize(self, text: str) -> Tensor:
        return self.all_ids(text)[:, self.family.diffusers.reader.cut :]

    def all_ids(self, text: str) -> Tensor:
        """The ids ``[1, N]`` of the tokens that the encoder reads."""
        how, own = self.family.diffusers.reader, self.own_ids(text)
        return F.pad(own, (0, max(how.least - own.shape[1], 0)), value=self.part(how.tokenizer).pad_token_id)

    def own_ids(self, text: str) -> Tensor:
        """The ids ``[1, N]`` of a text, as it is said to the encoder."""
        how = self.family.diffusers.reader
        tokenizer = self.part(how.tokenizer)
        if how.chat:
            said = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, enable_thinking=how.thinking)
        if how.template:
            text = how.template.replace("{}", text)
        return tokenizer(text, return_tensors="pt").input_ids

    def part(self, name: str) -> Any:
        """A text encoder or a tokenizer of the folder, kept until the encoders are dropped. Raises ``ValueError`` for one that cannot be
        read.
        """
        if name not in self.encoders_loaded:
            place = self.folder / name
            try:
                if name.startswith("tokenizer"):
                    self.encoders_loaded[name] = AutoTokenizer.from_pretrained(place, local_files_only=True)
                else:
                    projects = name in dict(self.family.diffusers.reader.beside)
                    clip = CLIPTextModelWithProjection if projects else CLIPTextModel
                    kind: Any = {"t5": T5EncoderModel, "clip_text_model": clip}.get(
                        read_config(place / "config.json")["model_type"], AutoModel
                    )
                    model = kind.from_pretrained(place, local_files_only=True, dtype=self.dtype)
                    self.encoders_loaded[name] = model.to(self.device).eval().requires_grad_(False)
            except (OSError, RuntimeError, SafetensorError, KeyError) as error:
                raise ValueError(f"{place} cannot be read as part of a model: {str(error).splitlines()[0]}") from error
        return self.encoders_loaded[name]

    def drop_encoders(self) -> None:
        self.encoders_loaded.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def encode_image(self, pictures: Tensor) -> Tensor:
        """The mean of the autoencoder's posterior, moved and scaled."""
        vae: Any = self.vae
        pixels = pictures.to(vae.device, vae.dtype)
        encoded = vae.encode(pixels[:, :, None] if self.family.frames else pixels)
        latents = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
        latents = latents.to(self.device).float()
        latents = folded(latents) if has_folds(vae) else latents
        middle, scale = moved_by(vae, latents)
        return ((latents[:, :, 0] if self.family.frames else latents) - middle) * scale

    @torch.no_grad()
    def decode_latent(self, latents: Tensor) -> Tensor:
        vae: Any = self.vae
        middle, scale = moved_by(vae, latents.float())
        scaled = (latents.float() / scale + middle).to(vae.device, vae.dtype)
        if has_folds(vae):
            scaled = from_patches(scaled.flatten(2).mT, *scaled.shape[2:])
        pictures = vae.decode(scaled[:, :, None] if self.family.frames else scaled).sample
        return (pictures[:, :, 0] if self.family.frames else pictures).to(self.device).float().clamp(-1, 1)

    def free_memory(self) -> None:
        """The autoencoder goes to the CPU, for good, and the text encoders go."""
        nn.Module.to(self.vae, "cpu")
        self.drop_encoders()

    @contextmanager
    def training_mode(self, x: Tensor) -> Iterator[None]:
        yield  # the blocks of diffusers write over nothing

    def read_several(self, lengths: Sequence[int], ask: Callable[..., Tensor]) -> AbstractContextManager[None]:
        joint = [self.blocks[block] for block in self.family.meeting(self.blocks)]
        return read_several(self.unet, joint, lengths, ask)

    def predict(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None, guidance: float | None = None) -> Tensor:
        sigma = self.schedule.sigma.to(x.device)[t.to(x.device)]
        own = self.family.objective.painted if guidance is None else guidance
        answer = CALLS[type(self.unet)]
        return answer(self.unet, x.to(self.dtype), sigma, context.to(self.dtype), pooled, own).float()


def moved_by(vae: Any, like: Tensor) -> tuple[Any, Any]:
    """What is taken off latents, and what they are multiplied by then: numbers, or of each channel its own ``[C, 1, 1]``."""
    if vae.config.get("latents_mean"):
        mean, spread = (torch.tensor(vae.config[name])[:, None, None].to(like) for name in ("latents_mean", "latents_std"))
        return mean, 1 / spread
    if has_folds(vae):
        mean, variance = (value[:, None, None].to(like) for value in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).rsqrt()
    return vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor


def has_folds(vae: Any) -> bool:
    """Whether 2 x 2 cells of an autoencoder's latents are one of the model's, and normed as a batch was while it learned."""
    return isinstance(vae, AutoencoderKLFlux2)


def folded(x: Tensor) -> Tensor:
    """Latents ``[B, C, h, w]`` with 2 x 2 cells in one, ``[B, 4 * C, h / 2, w / 2]``."""
    return patches_of(x).mT.unflatten(2, (x.shape[2] // 2, x.shape[3] // 2))


def keep_in_fp8(layer: nn.Module) -> None:
    """Keep the weight of a linear layer in fp8. It computes in the precision of what it reads, with the weight as that is then."""
    linear: Any = layer
    linear.weight = nn.Parameter(linear.weight.detach().to(FP8), requires_grad=False)

    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    linear.forward = MethodType(forward, linear)


# A model's answer for latents [B, C, h, w] at noise levels [B], with a text [B, N, C], its pooled state and guidance

Answer = Callable[[Any, Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


def flux_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Flux.1 reads latents in patches of 2 x 2 cells, and places of all tokens; Chroma neither a pooled text nor guidance."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).to(x)
    named: dict[str, Any] = {}
    if isinstance(model, FluxTransformer2DModel):
        if pooled is None:
            raise ValueError("Flux.1 reads the pooled state of its smaller text encoder too, and got none")
        named["pooled_projections"] = pooled.to(x)
        named["guidance"] = torch.full((len(x),), guidance, device=x.device) if model.config.guidance_embeds else None
    out = model(
        hidden_states=patches_of(x),
        encoder_hidden_states=text,
        timestep=sigma.to(x),
        img_ids=places,
        txt_ids=torch.zeros(text.shape[1], 3).to(x),
        **named,
    ).sample
    return from_patches(out, height, width)


def patches_of(x: Tensor) -> Tensor:
    """Latents ``[B, C, h, w]`` as tokens of 2 x 2 cells, ``[B, N, 4 * C]``."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    return x.unflatten(2, (height, 2)).unflatten(4, (width, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents from tokens of 2 x 2 cells in so many rows and columns."""
    return tokens.view(len(tokens), height, width, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def qwen_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Qwen-Image reads patches as Flux.1 does, and makes the places of tokens from the shape of a picture."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    shapes = [[(1, height, width)]] * len(x)
    out = model(hidden_states=patches_of(x), encoder_hidden_states=text, timestep=sigma.to(x), img_shapes=shapes).sample
    return from_patches(out, height, width)


def lumina_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Lumina 2 counts time from noise to picture and answers the way back."""
    mask = torch.ones(text.shape[:2], device=x.device, dtype=torch.long)
    return -model(hidden_states=x, timestep=1 - sigma.to(x), encoder_hidden_states=text, encoder_attention_mask=mask).sample


def z_image_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Z-Image as Lumina 2, each picture on its own and with a frame."""
    return -torch.stack(model(list(x[:, :, None]), 1 - sigma.to(x), list(text)).sample)[:, :, 0]


def flux2_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Flux.2 Klein reads cells as tokens, and places of all tokens: those of texts are numbered on the last axis."""
    height, width = x.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    nowhere = torch.zeros_like(rows)
    places = torch.stack([nowhere, rows, columns, nowhere], -1).flatten(0, 1).to(x.device)
    of_text = F.pad(torch.arange(text.shape[1])[:, None], (3, 0)).to(x.device)
    tokens = x.flatten(2).mT
    out = model(hidden_states=tokens, encoder_hidden_states=text, timestep=sigma.to(x), img_ids=places, txt_ids=of_text).sample
    return out.mT.unflatten(2, (height, width))


def sd3_answer(model: Any, x: Tensor, sigma: Tensor, text: Tensor, pooled: Tensor | None, guidance: float) -> Tensor:
    """Stable Diffusion 3.5 reads pooled texts beside the text, and counts 1000 times."""
    if pooled is None:
        raise ValueError("Stable Diffusion 3.5 reads the pooled states of its two CLIPs too, and got none")
    return model(hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled.to(x), timestep=1000 * sigma.to(x)).sample


CALLS: Mapping[type, Answer] = {
    FluxTransformer2DModel: flux_answer,
    Flux2Transformer2DModel: flux2_answer,
    ChromaTransformer2DModel: flux_answer,
    Lumina2Transformer2DModel: lumina_answer,
    QwenImageTransformer2DModel: qwen_answer,
    SD3Transformer2DModel: sd3_answer,
    ZImageTransformer2DModel: z_image_answer,
}


def family_in(config: Mapping[str, Any]) -> Family:
    """The family, at any size, of a transformer of diffusers by its configuration. Raises ``ValueError`` for one of none."""
    classes = {kind.__name__ for kind in CALLS}
    known = {own: f for f in families() if not f.layerwise and (own := f.diffusers.facts["_class_name"]) in classes}
    name = config.get("_class_name", "")
    if name not in known:
        titles = " or ".join(f.title for f in known.values())
        alone = next(
            (f", of {f.title}, which works in ComfyUI alone" for f in families() if f.diffusers.facts.get("_class_name") == name), ""
        )
        raise ValueError(f"a model of the class {name!r}{alone}: expected {titles}, or Stable Diffusion 1 or SDXL")
    found = known[name]
    for fact, wanted in found.diffusers.facts.items():
        if config.get(fact, wanted) != wanted:
            raise ValueError(
                f"a model of the class {name!r} with {fact} = {config[fact]!r}: of that class {found.title} is known, with {wanted!r}"
            )
    return found


def load_transformer(folder: Path, device: torch.device, dtype: torch.dtype) -> DiffusersTransformer:
    """The backbone of a transformer's folder in diffusers' layout.

    Raises ``ValueError`` if a part is missing or unreadable, or the model is of another kind.
    """
    config, vae = (read_config(folder / part / "config.json") for part in ("transformer", "vae"))
    schedule = read_config(folder / "scheduler" / "scheduler_config.json")
    family = family_in(config)
    models: dict[str, Any] = {kind.__name__: kind for kind in CALLS}
    own, kind = models[config["_class_name"]], AUTOENCODERS.get(vae.get("_class_name", ""))
    if kind is None or "Flow" not in str(schedule.get("_class_name")):
        raise ValueError(
            f"{folder} has the autoencoder {vae.get('_class_name')} and the scheduler {schedule.get('_class_name')}: expected "
            f"{' or '.join(AUTOENCODERS)}, and one of a flow, such as FlowMatchEulerDiscreteScheduler"
        )
    shift = torch.tensor(family.diffusers.mu).exp().item() if schedule.get("use_dynamic_shifting") else schedule.get("shift", 1.0)
    try:
        first, second = (
            part.from_pretrained(folder / name, local_files_only=True, variant=variant(folder / name))
            for part, name in ((own, "transformer"), (kind, "vae"))
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be read as a model: {str(error).splitlines()[0]}") from error
    return DiffusersTransformer(folder, first, second, shift, device, dtype)
