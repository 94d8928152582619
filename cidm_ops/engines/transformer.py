"""Transformers that join text and image through diffusers, to learn on and to paint with: Flux.1, Chroma, Lumina 2, Z-Image, Qwen-Image,
Stable Diffusion 3.5, Flux.2 Klein, Krea 2, and Anima, in which the image looks at the text.

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
    AnimaTextConditioner,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderTiny,
    ModelMixin,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from ..backbone import TransformerBackbone
from ..fingerprint import fingerprint
from ..models.family import Family
from ..models.module import Slice, block_in, flat, without_number
from ..models.registry import families, family_of
from ..schedule import Schedule
from .answers import ANSWERS, from_patches, patches_of
from .folder import read_config, variant
from .several_texts import read_several
from .tokenizer import cut_to_end, tokenize

FP8 = torch.float8_e4m3fn
KINDS = (AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderTiny)
AUTOENCODERS: Mapping[str, Any] = {kind.__name__: kind for kind in KINDS}


class DiffusersTransformer(TransformerBackbone):
    """See ``TransformerBackbone``. The weights are frozen, and come in the precision that they are computed with, see ``computed_in``; in
    fp8 those of the blocks are kept so. What goes in and out is fp32.
    """

    def __init__(self, folder: Path, unet: nn.Module, vae: nn.Module, shift: float, device: torch.device, dtype: torch.dtype):
        known = family_in(unet.config)  # type: ignore[arg-type]
        for module in (unet, vae):
            nn.Module.to(module, device).requires_grad_(False).eval()
        self.unet, self.vae, self.folder = unet, vae, folder
        self.device, self.dtype, self.schedule = device, computed_in(dtype, device), Schedule.straight(shift)
        linears: dict[str, Any] = {name: m for name, m in unet.named_modules() if isinstance(m, nn.Linear)}
        self.modules = linears
        layers = {own: Slice(name, 0, m.out_features, m.in_features) for name, m in linears.items() if (own := known_layer(known, name))}
        architecture = known.architecture_of(layers)
        blocks = {block: block_in(at.module) for layer, at in layers.items() if (block := known.block_of(layer))}
        self.blocks = {block: unet.get_submodule(blocks[block]) for block in sorted(blocks, key=known.place)}
        sites = known.sites(self.blocks, "cross", "joint")
        queries = [part for block in known.meeting(self.blocks) for part in known.queries(block)]
        print_of = fingerprint([linears[layers[layer].module].weight for layer in (queries[0], queries[-1])])
        super().__init__(family_of(architecture), architecture, layers, dict.fromkeys(sites), fingerprint=print_of)
        self.size = self.family.size  # pixels of a side that the base was made for
        self.encoders_loaded: dict[str, Any] = {}
        if dtype == FP8:
            for name in filter(known.block_of, layers):
                keep_in_fp8(self.modules[layers[name].module])

    @torch.no_grad()
    def read(self, text: str) -> tuple[Tensor, Tensor | None]:
        how = self.family.diffusers.reader
        ids = self.own_ids(text) if how.through else self.all_ids(text)
        masked: dict[str, Any] = {}
        if how.layers:
            said = torch.arange(ids.shape[1]) < self.own_ids(text).shape[1]
            masked["attention_mask"] = said[None].long().to(self.device)
        found = self.part(how.states)(input_ids=ids.to(self.device), output_hidden_states=bool(how.layers) or how.layer != -1, **masked)
        if how.layers:
            states = torch.cat([found.hidden_states[layer] for layer in how.layers], -1)
        else:
            states = found.last_hidden_state if how.layer == -1 else found.hidden_states[how.layer]
        if how.through:
            states = self.part(how.through[0])(states, self.adapted_ids(text).to(self.device))
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
        how = self.family.diffusers.reader
        if how.through:
            return self.filled_up(self.adapted_ids(text), how.through[1])
        return self.all_ids(text)[:, how.cut :]

    def all_ids(self, text: str) -> Tensor:
        """The ids ``[1, N]`` of the tokens that the encoder reads."""
        return self.filled_up(self.own_ids(text), self.family.diffusers.reader.tokenizer)

    def filled_up(self, ids: Tensor, tokenizer: str) -> Tensor:
        """The ids ``[1, N]`` with those of padding behind them, if they are fewer than a text has."""
        least = self.family.diffusers.reader.least
        if ids.shape[1] >= least:
            return ids
        return F.pad(ids, (0, least - ids.shape[1]), value=self.part(tokenizer).pad_token_id)

    def adapted_ids(self, text: str) -> Tensor:
        """The ids ``[1, N]`` of a text to an adapter of what the encoder makes of it."""
        how = self.family.diffusers.reader
        assert how.through
        return self.part(how.through[1])(text, return_tensors="pt").input_ids

    def own_ids(self, text: str) -> Tensor:
        """The ids ``[1, N]`` of a text, as it is said to the encoder."""
        how = self.family.diffusers.reader
        if how.clip:
            return cut_to_end(tokenize(text, how.clip)[:1], how.clip)
        tokenizer = self.part(how.tokenizer)
        if how.chat:
            said = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, enable_thinking=how.thinking)
        if how.template:
            text = how.template.replace("{}", text)
        return torch.tensor([tokenizer(text).input_ids or [tokenizer.pad_token_id]])  # of no text one token, as in ComfyUI

    def part(self, name: str) -> Any:
        """A text encoder or a tokenizer of the folder, kept until the encoders are dropped. Raises ``ValueError`` for one that cannot be
        read.
        """
        if name not in self.encoders_loaded:
            place = self.folder / name
            try:
                if "tokenizer" in name:
                    self.encoders_loaded[name] = AutoTokenizer.from_pretrained(place, local_files_only=True)
                else:
                    config = read_config(place / "config.json")
                    projects = name in dict(self.family.diffusers.reader.beside)
                    kinds: dict[str, Any] = {
                        "t5": T5EncoderModel,
                        "clip_text_model": CLIPTextModelWithProjection if projects else CLIPTextModel,
                        "AnimaTextConditioner": AnimaTextConditioner,
                    }
                    kind = kinds.get(config.get("_class_name") or config["model_type"], AutoModel)
                    precision = "torch_dtype" if issubclass(kind, ModelMixin) else "dtype"
                    model = kind.from_pretrained(place, local_files_only=True, **{precision: self.dtype})
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
        answer = ANSWERS[type(self.unet)]
        return answer(self.unet, x.to(self.dtype), sigma, context.to(self.dtype), pooled, own).float()


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision that is computed with: fp8 is one of storage alone, whose weights act in bf16, on the processor in fp32."""
    if dtype != FP8:
        return dtype
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def known_layer(family: Family, module: str) -> str | None:
    """Our name of the layer that a module of diffusers' model is, or ``None`` for one that no LoRA changes."""
    theirs = family.diffusers.names
    if not theirs:
        return module if family.files.read_layer(flat(module)) == module else None
    pattern, number = without_number(module)
    ours = next((own for own, name in theirs.items() if name == pattern), None)
    return None if ours is None else ours.format(number)


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


def family_in(config: Mapping[str, Any]) -> Family:
    """The family, at any size, of a transformer of diffusers by its configuration. Raises ``ValueError`` for one of none."""
    known: dict[str, Family] = {}
    for family in families():
        if not family.layerwise:
            known.setdefault(family.diffusers.facts["_class_name"], family)  # the first is at the size of the name
    name = config.get("_class_name", "")
    if name not in known:
        titles = " or ".join(f.title for f in known.values())
        raise ValueError(f"a model of the class {name!r}: expected {titles}, or Stable Diffusion 1 or SDXL")
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
    models: dict[str, Any] = {kind.__name__: kind for kind in ANSWERS}
    own, kind = models[config["_class_name"]], AUTOENCODERS.get(vae.get("_class_name", ""))
    if kind is None or "Flow" not in str(schedule.get("_class_name")):
        raise ValueError(
            f"{folder} has the autoencoder {vae.get('_class_name')} and the scheduler {schedule.get('_class_name')}: expected "
            f"{' or '.join(AUTOENCODERS)}, and one of a flow, such as FlowMatchEulerDiscreteScheduler"
        )
    if missing := [part for part in family.diffusers.reader.through or () if not (folder / part).is_dir()]:
        raise ValueError(f"{folder} has no {' and no '.join(missing)}, through which {family.title} reads a text: give its whole folder")
    shift = torch.tensor(family.diffusers.mu).exp().item() if schedule.get("use_dynamic_shifting") else schedule.get("shift", 1.0)
    try:
        first, second = (
            part.from_pretrained(
                folder / name, local_files_only=True, variant=variant(folder / name), torch_dtype=computed_in(dtype, device)
            )
            for part, name in ((own, "transformer"), (kind, "vae"))
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be read as a model: {str(error).splitlines()[0]}") from error
    return DiffusersTransformer(folder, first, second, shift, device, dtype)
