"""A Backbone through diffusers: Doodle, a diffusers folder or a single-file checkpoint of Stable Diffusion 1 or SDXL. Never downloads."""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ..backbone import Backbone
from ..causal import end_states, pooled_state, text_states
from ..doodle import files
from ..fingerprint import architecture, fingerprint
from ..hub import read_layerwise
from ..models import doodle_transformer as doodle_transformer  # makes its family known
from ..models.family import Family
from ..models.registry import families, family_of
from ..models.sd import DOODLE
from ..schedule import Schedule
from .checkpoint import Modules, filled, read_checkpoint, text_model
from .folder import read_config, variant
from .tokenizer import tokenize
from .transformer import DiffusersTransformer, load_transformer

FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
PREDICTION = {"epsilon": "eps", "v_prediction": "v"}


class DiffusersBackbone(Backbone):
    """See ``Backbone``. The weights are frozen and computed with in ``dtype``; what goes in and out is fp32."""

    def __init__(self, modules: Modules, schedule: Mapping[str, Any], device: torch.device, dtype: torch.dtype):
        self.unet, self.vae = modules[0], modules[2]
        self.texts: dict[str, Any] = modules[1]
        self.device, self.dtype, self.encoders = device, dtype, tuple(self.texts)
        for module in (self.unet, *self.texts.values(), self.vae):
            fp32 = module is self.vae and dtype == torch.float16 and self.vae.config.get("force_upcast", False)  # it overflows in half
            # nn.Module.to: diffusers' own warns about modules to keep in fp32 even where there are none
            nn.Module.to(module, device, torch.float32 if fp32 else dtype).requires_grad_(False).eval()
        kind = family_in(self.unet.config, self.encoders)
        modules_of = dict(self.unet.named_modules())
        named = [(name, module) for name, module in modules_of.items() if kind.sublayers(name)]
        self.blocks = dict(sorted(named, key=lambda item: kind.place(item[0])))
        self.cross_attention = {name: modules_of[name] for name in kind.text_sites(self.blocks)}
        self.layers = {name: m for name, m in modules_of.items() if isinstance(m, nn.Linear | nn.Conv2d)}
        self.architecture = architecture(kind, self.cross_attention)
        self.family = family_of(self.architecture)
        self.size: int = self.family.factor * self.unet.config.sample_size  # pixels of a side that the base was made for
        layers: list[Any] = list(self.cross_attention.values())
        self.fingerprint = fingerprint([layers[0].to_k.weight, layers[-1].to_k.weight])
        self.schedule = noise_schedule(schedule)

    def tokenize(self, text: str, encoder: str = "") -> Tensor:
        return tokenize(text, self.family.encoder(encoder)).to(self.device)

    def token_rows(self, ids: Tensor, encoder: str = "") -> Tensor:
        return self.texts[self.family.encoder(encoder).name].get_input_embeddings().weight[ids.to(self.device)].float()

    def encode_text(self, ids: Tensor, rows: Tensor, encoder: str = "", shared: int = 0) -> tuple[Tensor, Tensor | None]:
        """The final norm belongs to the last layer: a family that leaves layers out reads states without it."""
        kind = self.family.encoder(encoder)
        model = self.texts[kind.name]
        depth = model.config.num_hidden_layers - kind.skip
        states = text_states(model, rows.to(self.dtype), shared, depth, norm=not kind.skip)
        if not kind.pooled:
            return states.float(), None
        end = (ids[:1].to(self.device) == kind.end).int().argmax(1)
        return states.float(), model.text_projection(pooled_state(model, states[:1], end, depth)).float()

    def end_states(self, ids: Tensor, rows: Tensor, encoder: str = "", projected: bool = False) -> Tensor:
        kind = self.family.encoder(encoder)
        model = self.texts[kind.name]
        ends = end_states(model, rows.to(self.dtype), (ids.to(self.device) == kind.end).int().argmax(1))
        return (model.text_projection(ends) if projected else ends).float()

    def text_state(self) -> Hashable | None:
        """The weights of the text encoders, each by itself, its place and how often it was changed; none while hooks act beside them, and
        for weights that count no changes.
        """
        parts = [part for model in self.texts.values() for part in model.modules()]
        if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
            return None
        weights = [w for part in parts for w in part._parameters.values() if w is not None]
        if any(w.is_inference() for w in weights):
            return None
        return tuple((ref(w), w.data_ptr(), w._version) for w in weights)

    @torch.no_grad()
    def encode_image(self, pictures: Tensor) -> Tensor:
        """The mean of the autoencoder's posterior, scaled."""
        encoded = self.vae.encode(pictures.to(self.vae.device, self.vae.dtype))
        latents = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mode()
        return latents.to(self.device).float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latent(self, latents: Tensor) -> Tensor:
        scaled = latents.to(self.vae.device, self.vae.dtype) / self.vae.config.scaling_factor
        return self.vae.decode(scaled).sample.to(self.device).float().clamp(-1, 1)

    def free_memory(self) -> None:
        """The autoencoder goes to the CPU, for good, and what the allocator keeps in store is given back."""
        nn.Module.to(self.vae, "cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def training_mode(self, x: Tensor) -> AbstractContextManager[None]:
        return read_layerwise(self.cross_attention.values())

    def predict(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None) -> Tensor:
        added = None
        if pooled is not None:  # the pooled text, and the picture's size, crop and size again
            height, width = (self.family.factor * n for n in x.shape[-2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]], device=x.device).expand(len(x), -1)
            added = {"text_embeds": pooled.to(self.dtype), "time_ids": sizes.to(self.dtype)}
        with read_layerwise(self.cross_attention.values()):
            times = self.schedule.times.to(t.device)[t]
            return self.unet(x.to(self.dtype), times, context.to(self.dtype), added_cond_kwargs=added).sample.float()


def family_in(config: Mapping[str, Any], encoders: Sequence[str] = ()) -> Family:
    """The family, at any size, of a model of diffusers by its configuration, and by the names of its text encoders where they are known.

    The one of which most facts hold counts. Raises ``ValueError`` for a model of none.
    """
    known = [f for f in families() if not encoders or tuple(e.name for e in f.encoders) == tuple(encoders)]
    fitting = [f for f in known if all(config.get(key) == value for key, value in f.diffusers.facts.items())]
    if not fitting:
        raise ValueError(f"a model of no family that is known: expected {' or '.join(dict.fromkeys(f.title for f in families()))}")
    return max(fitting, key=lambda family: len(family.diffusers.facts))


def noise_schedule(config: Mapping[str, Any]) -> Schedule:
    """Make the schedule that the configuration of a diffusers scheduler describes."""
    if config.get("_class_name") in FLOW:
        return Schedule.straight(config.get("shift", 1.0))
    noise = DDPMScheduler.from_config(config)
    return Schedule.of_alphas(noise.alphas_cumprod, PREDICTION[noise.config.prediction_type])


def fastest_device() -> torch.device:
    """The fastest device there is: CUDA, else Apple's, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def load_any(
    base: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusersBackbone | DiffusersTransformer:
    """The backbone of ``base``: what ``load`` takes, or a diffusers folder of a transformer. Raises what ``load`` does."""
    path = Path(base).expanduser()
    if (path / "transformer").is_dir():
        return load_transformer(path, torch.device(device), dtype)
    if dtype.itemsize == 1:
        raise ValueError("float8_e4m3fn keeps the blocks of a transformer small: for this base take bfloat16")
    return load(base, device, dtype)


def load(base: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> DiffusersBackbone:
    """The backbone of ``base``: "doodle", or a diffusers folder or .safetensors/.ckpt file of Stable Diffusion 1 or SDXL

    Raises FileNotFoundError if there is nothing of that name, ValueError if it is not a complete model of that kind.
    """
    path = Path(base).expanduser()
    if str(base) == "doodle":
        modules, schedule = doodle(), dict(DOODLE.diffusers.schedule)
    elif (path / "transformer").is_dir():
        raise ValueError(
            f"{path} is a transformer, on which concepts are learned and painted: this command works on Stable Diffusion 1 and SDXL"
        )
    elif path.is_dir():
        modules, schedule = read_folder(path)
    elif path.is_file() and path.suffix in (".safetensors", ".ckpt"):
        modules, schedule = read_checkpoint(path)
    elif path.exists():
        raise ValueError(f"{path} is no model file: expected a diffusers folder or a .safetensors or .ckpt file")
    else:
        raise FileNotFoundError(f"there is no base model at {path}: expected 'doodle', a diffusers folder, or a .safetensors or .ckpt file")
    return DiffusersBackbone(modules, schedule, torch.device(device), dtype)


def doodle() -> Modules:
    """U-Net, text encoder and autoencoder of the model that ships with the pack."""
    own = DOODLE.diffusers
    return (
        filled(lambda: UNet2DConditionModel(**own.model), files.unet_state(), files.WEIGHTS),
        {e.name: text_model(e, own.texts[e.name], files.text_state(), files.WEIGHTS) for e in DOODLE.encoders},
        filled(lambda: AutoencoderTiny(**own.vae), files.vae_state(), files.WEIGHTS),
    )


def read_folder(folder: Path) -> tuple[Modules, dict[str, Any]]:
    """The modules of a folder in diffusers' layout, and its noise schedule.

    Raises ValueError if a part is missing or unreadable, or the model is of another kind.
    """
    unet, vae = (read_config(folder / part / "config.json") for part in ("unet", "vae"))
    schedule = read_config(folder / "scheduler" / "scheduler_config.json")
    family = family_in(unet)
    own, encoders = family.diffusers, family.encoders
    texts = {e.name: read_config(folder / e.diffusers / "config.json") for e in encoders}
    width, read, channels = sum(t["hidden_size"] for t in texts.values()), unet.get("cross_attention_dim"), unet.get("in_channels")
    kind = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}.get(vae.get("_class_name", ""))
    wanted = "expected Stable Diffusion 1 or SDXL"
    first = encoders[0].name
    other_text = texts[first].get("hidden_act") != own.texts[first]["hidden_act"]
    if other_text or (unet.get("use_linear_projection") and not own.model.get("use_linear_projection")):
        raise ValueError(f"{folder} is a Stable Diffusion 2 model: {wanted}")
    sized = next((f for f in families() if f.name == family.name and f.width == read), family)  # Doodle has latents of more channels
    if width != read or channels != sized.latent_channels:
        raise ValueError(
            f"{folder} has a U-Net of {channels} input channels that reads a text of width {read}, and text encoders of width {width}: "
            f"{wanted}, with {sized.latent_channels} channels and equal widths"
        )
    if kind is None or (schedule.get("_class_name") not in FLOW and schedule.get("prediction_type", "epsilon") not in PREDICTION):
        raise ValueError(
            f"{folder} has the autoencoder {vae.get('_class_name')} and predicts {schedule.get('prediction_type')}: "
            f"expected AutoencoderKL or AutoencoderTiny, and {', '.join(PREDICTION)} or a flow"
        )

    def read_part(module: Any, part: str) -> Any:
        return module.from_pretrained(folder / part, local_files_only=True, variant=variant(folder / part))

    try:
        read_texts = {e.name: read_part(CLIPTextModelWithProjection if e.pooled else CLIPTextModel, e.diffusers) for e in encoders}
        modules = read_part(UNet2DConditionModel, "unet"), read_texts, read_part(kind, "vae")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be read as a model: {str(error).splitlines()[0]}") from error
    return modules, schedule
