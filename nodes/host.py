"""ComfyUI as a Backbone, and concepts on its MODEL: with ``native.py`` the only file that touches comfy internals.

The host's objects stay as they are: what training needs of them is swapped in for one call, and what painting needs goes
on a clone.
"""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import ref

import comfy.conds
import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..cidm_ops.backbone import Backbone, Transformer
from ..cidm_ops.causal import end_states, pooled_state, text_states
from ..cidm_ops.fingerprint import architecture, fingerprint
from ..cidm_ops.hub import read_layerwise
from ..cidm_ops.models.family import Family
from ..cidm_ops.models.module import Slice
from ..cidm_ops.models.registry import families, family_of
from ..cidm_ops.painting.texts import kept_text
from ..cidm_ops.schedule import Flow, Schedule

PREDICTIONS = {comfy.model_sampling.EPS: "eps", comfy.model_sampling.V_PREDICTION: "v", comfy.model_sampling.CONST: "flow"}
STEPPED = (
    comfy.model_sampling.ModelSamplingDiscrete,
    comfy.model_sampling.ModelSamplingDiscreteFlow,
    comfy.model_sampling.ModelSamplingFlux,
)
ONLY = "CIDM works with Stable Diffusion 1.x, SDXL and Doodle"
PAINTED = "learns concepts by Train Concept and paints them by Paint with Concepts, Paint in Regions and Apply Concepts"
NOT_YET = "weaving, Infusion and views of a prompt do not work on it yet"


@contextmanager
def differentiable(module: nn.Module) -> Iterator[None]:
    """Make weights that were loaded in inference mode, which autograd refuses, normal tensors on the same memory, while this is open.

    None of them asks for a gradient. Nothing is copied and the host's own parameters come back.
    """
    if not torch.is_grad_enabled():
        yield
        return
    swapped = [(m, n, p) for m in module.modules() for n, p in m._parameters.items() if type(p) is nn.Parameter]
    for m, n, p in swapped:
        alias = torch.empty(0, dtype=p.dtype, device=p.device).set_(p.untyped_storage(), p.storage_offset(), p.size(), p.stride())
        m._parameters[n] = nn.Parameter(alias, requires_grad=False)
    try:
        yield
    finally:
        for m, n, p in swapped:
            m._parameters[n] = p


class ComfyText:
    """The text half of a backbone: tokens and text states through the host's CLIP, with its clip skip."""

    cross_attention: Mapping[str, nn.Module] = {}  # unknown without a MODEL

    def __init__(self, clip: comfy.sd.CLIP | None):
        if clip is None:
            raise ValueError(f"{ONLY} with a text encoder: there is no CLIP, as in files of the diffusion model alone; connect one")
        kind = type(clip.cond_stage_model).__name__
        family = next((f for f in families() if f.host.text_model == kind), None)
        if family is None or not all(hasattr(clip.cond_stage_model, e.host) for e in family.encoders):
            raise ValueError(f"{ONLY}: this CLIP is {kind}, connect the CLIP of the same checkpoint")
        self.clip, self.family = clip, family
        self.encoders = tuple(e.name for e in family.encoders)
        self.device: torch.device = clip.patcher.load_device
        self.texts: dict[str, nn.Module] = {e: self.encoder(e).transformer for e in self.encoders}

    def encoder(self, name: str = "") -> Any:
        """The host's text encoder of a name, or the first."""
        return getattr(self.clip.cond_stage_model, self.family.encoder(name).host)

    def tokens(self, text: str, encoder: str = "") -> tuple[Tensor, Tensor]:
        """Ids ``[chunks, N]`` and weights ``[chunks, N]`` of a text with the host's ``(word:1.2)`` syntax."""
        rows = self.clip.tokenize(text)[self.family.encoder(encoder).host_tokens]
        if any(not isinstance(token[0], int) for row in rows for token in row):
            raise ValueError("a text with concepts cannot hold `embedding:` words: leave them out or encode them by a node of their own")
        return torch.tensor([[t[0] for t in row] for row in rows]), torch.tensor([[float(t[1]) for t in row] for row in rows])

    def tokenize(self, text: str, encoder: str = "") -> Tensor:
        return self.tokens(text, encoder)[0]

    def token_table(self, encoder: str = "") -> nn.Embedding:
        return self.encoder(encoder).transformer.get_input_embeddings()

    @torch.no_grad()
    def token_rows(self, ids: Tensor, encoder: str = "") -> Tensor:
        weight = self.token_table(encoder).weight
        return weight[ids.to(weight.device)].float().to(self.device)

    def encode_text(self, ids: Tensor, rows: Tensor, encoder: str = "", shared: int = 0) -> tuple[Tensor, Tensor | None]:
        """Through the host's own layers, with its clip skip, its patches and its way with weights that lie elsewhere."""
        part, kind = self.encoder(encoder), self.family.encoder(encoder)
        self.clip.load_model()
        part.reset_clip_options()
        if self.clip.layer_idx is not None:
            part.set_clip_options({"layer": self.clip.layer_idx})
        model, count = part.transformer, part.num_layers
        depth = count if part.layer == "last" else part.layer_idx % count + 1
        with differentiable(part):
            states = text_states(model, rows.float(), shared, depth, norm=part.layer == "last" or part.layer_norm_hidden_state)
            if not kind.pooled:
                return states, None
            end = (ids[:1].to(states.device) == kind.end).int().argmax(1)
            return states, model.text_projection(pooled_state(model, states[:1], end, depth))

    def end_states(self, ids: Tensor, rows: Tensor, encoder: str = "", projected: bool = False) -> Tensor:
        """Through all of the host's own layers, whatever its clip skip."""
        part, kind = self.encoder(encoder), self.family.encoder(encoder)
        self.clip.load_model()
        model = part.transformer
        with differentiable(part):
            ends = end_states(model, rows.float(), (ids.to(rows.device) == kind.end).int().argmax(1))
            return model.text_projection(ends) if projected else ends

    def text_state(self) -> Hashable | None:
        """The patches on the text encoder, its precision and place, the clip skip and the tokenizer; none while hooks, injections (as a
        LoRA's in bypass mode) or other objects act, of which the number of the patches says nothing.
        """
        patcher = self.clip.patcher
        parts = (part for model in self.texts.values() for part in model.modules())
        dtype = patcher.object_patches.get("manual_cast_dtype")  # newer hosts set it on every text encoder
        if patcher.forced_hooks is not None or patcher.injections or set(patcher.object_patches) - {"manual_cast_dtype"}:
            return None
        if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
            return None
        options = str(sorted(self.clip.tokenizer_options.items()))
        return patcher.patches_uuid, dtype, str(self.device), self.clip.layer_idx, ref(self.clip.tokenizer), options

    def emphasise(self, text: str, context: Tensor) -> Tensor:
        """The host's word weights on text states ``[L, N, C]``: each moves away from the empty text by its weight."""
        weights = self.tokens(text)[1].flatten().to(context)
        if (weights == 1).all():
            return context
        empty = kept_text(self, "").context[0]
        empty = empty.repeat(1, len(weights) // empty.shape[1], 1).to(context)
        return empty + (context - empty) * weights[:, None]


class ComfyBackbone(ComfyText, Backbone):
    """See ``Backbone``: MODEL, CLIP and, to learn, VAE of the host. Raises ``ValueError`` for other families of models."""

    def __init__(self, model: ModelPatcher, clip: comfy.sd.CLIP, vae: comfy.sd.VAE | None = None):
        family = layerwise_family(model, photo=True)
        if vae is not None and reads_photo(model):
            raise ValueError(
                "this is an inpainting model, which reads a photo and its mask beside the noise: concepts are learned on an ordinary "
                "checkpoint of the same kind, and paint on this one too"
            )
        super().__init__(clip)
        self.model, self.vae, self.room = model, vae, 1
        self.unet: nn.Module = model.model.diffusion_model
        self.device = model.load_device
        self.dtype: torch.dtype = model.model.manual_cast_dtype or model.model.get_dtype()
        if family.host.text_model != self.family.host.text_model:
            width = model.model.model_config.unet_config["context_dim"]
            raise ValueError(
                f"the CLIP has {len(self.encoders)} text encoders and the model reads a text of width {width}: connect its own CLIP"
            )
        self.blocks = {name: self.unet.get_submodule(own) for name, own in block_names(model).items()}
        layers = dict(self.unet.named_modules())
        self.layers = {name: layers[own] for name, own in layer_names(model).items()}
        sites = text_sites(model)
        self.cross_attention = {name: layers[own] for name, own in sites.items()}
        self.architecture = architecture(family, self.cross_attention)
        self.family = family_of(self.architecture)
        keys = [f"diffusion_model.{own}.to_k.weight" for own in sites.values()]
        self.fingerprint = fingerprint([model.get_key_patches(key)[key][0][0] for key in (keys[0], keys[-1])])
        self.schedule = noise_schedule(model.get_model_object("model_sampling"))

    @torch.no_grad()
    def encode_image(self, pictures: Tensor) -> Tensor:
        assert self.vae is not None, "this backbone was made without a VAE"
        latents = self.vae.encode((pictures.movedim(1, -1) + 1) / 2)
        return self.model.model.process_latent_in(latents).to(self.device)

    @torch.no_grad()
    def decode_latent(self, latents: Tensor) -> Tensor:
        assert self.vae is not None, "this backbone was made without a VAE"
        pixels = self.vae.decode(self.model.model.process_latent_out(latents.float()))
        return pixels.movedim(-1, 1).to(self.device) * 2 - 1

    @contextmanager
    def training_mode(self, x: Tensor) -> Iterator[None]:
        self._load(x, 4)  # twice what painting takes: autograd keeps what the forward pass makes
        with differentiable(self.unet), read_layerwise(self.cross_attention.values()):
            yield

    def predict(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None) -> Tensor:
        base, dtype = self.model.model, self.dtype
        self._load(x, 2)
        adm = None
        if pooled is not None:  # the pooled text and the size of the picture
            height, width = (self.family.factor * n for n in x.shape[-2:])
            adm = base.encode_adm(pooled_output=pooled, height=height, width=width, device=x.device).to(x.device, dtype)
        with read_layerwise(self.cross_attention.values()):
            times = self.schedule.times.to(t.device)[t].float()
            return self.unet(x.to(dtype), times, context=context.to(dtype), y=adm, transformer_options={}).float()

    def free_memory(self) -> None:
        """The host unloads all models and next time keeps twice the room free for a step, if need be by leaving weights on the CPU."""
        self.room *= 2
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()

    def _load(self, x: Tensor, times: int) -> None:
        """Have the host load the model, with room for a batch of ``times`` that of ``x``."""
        needed = self.model.memory_required([self.room * times * len(x), *x.shape[1:]])
        comfy.model_management.load_models_gpu([self.model], memory_required=needed)


class ComfyTransformer(Transformer):
    """A MODEL whose layers all read one text, and its CLIP: see ``Transformer``. Raises ``ValueError`` for one whose layers are not where
    the host has them.
    """

    def __init__(self, model: ModelPatcher, clip: comfy.sd.CLIP | None):
        family, layers = known_family(model), layout(model)
        if clip is None:
            raise ValueError(f"{family.title} needs its text encoder too: connect a CLIP")
        text: Any = clip.cond_stage_model
        found = {e.name: part.transformer for e in family.encoders if (part := getattr(text, e.host, None)) is not None}
        sites = family.sites(dict.fromkeys(map(family.block_of, layers)), "cross", "joint")
        architecture = family.architecture_of(layers)
        super().__init__(family_of(architecture), architecture, layers, dict.fromkeys(sorted(sites, key=family.place)), found)
        self.model, self.clip = model, clip
        self.fingerprint = self.print_of_queries()

    def print_of_queries(self) -> str:
        """The fingerprint of the queries of the first and the last block in which the image reads the text; none of quantised weights."""
        family = self.family
        blocks = sorted({family.block_of(layer) for layer in self.layers} - {""}, key=family.place)
        parts = [part for block in family.meeting(blocks) for part in family.queries(block)]
        weights = []
        for layer in (parts[0], parts[-1]):
            at = self.layers[layer]
            key = f"diffusion_model.{at.module}.weight"
            weight = self.model.get_key_patches(key)[key][0][0]
            if type(weight) not in (Tensor, nn.Parameter) or weight.shape[1:] != (at.columns,) or not weight.is_floating_point():
                return ""
            weights.append(weight[at.start : at.start + at.rows])
        return fingerprint(weights)


def base_of(model: ModelPatcher, clip: comfy.sd.CLIP | None) -> "ComfyBackbone | ComfyTransformer":
    """What concepts can be painted with: by its family, a backbone, or a transformer in which all layers read one text."""
    family = family_in(model)
    return ComfyBackbone(model, clip) if family is None or family.layerwise else ComfyTransformer(model, clip)


def unadapted(model: ModelPatcher, more: Mapping[str, Any]) -> bool:
    """Whether what goes with a text says that the adapter of a MODEL for texts, if its family has one, has still to read it."""
    how = known_family(model).host.text
    return bool(how.adapter) and f"{how.tokens}_ids" in more


def adapted(model: ModelPatcher, said: list) -> list:
    """A CONDITIONING as the blocks of a MODEL read it: if its family has an adapter for texts, which is part of the MODEL, with what that
    answers ``[B, N, C]`` to the states of the language model.
    """
    if not any(unadapted(model, more) for _, more in said):
        return said
    found, names = [], [f"{known_family(model).host.text.tokens}_{part}" for part in ("ids", "weights")]
    comfy.model_management.load_models_gpu([model])
    for states, more in said:
        given = {name: more[name] for name in names if name in more}
        with torch.inference_mode():  # the host lets the model do it in every step where it could learn
            read = model.model.extra_conds(cross_attn=states, device=model.load_device, **given)["c_crossattn"].cond
        rest = {name: value for name, value in more.items() if name not in (*names, "attention_mask")}  # which is of the states
        found.append([read.to(comfy.model_management.intermediate_device()), rest])
    return found


def layout(model: ModelPatcher) -> dict[str, Slice]:
    """Where our layers lie in a MODEL of a family without a table of the host's own: by canonical name, in the host's modules.

    Raises ``ValueError`` if they are not where the host has them.
    """
    family, unet = known_family(model), model.model.diffusion_model
    linears = {name: m for name, m in unet.named_modules() if isinstance(m, nn.Linear)}
    found = family.layout({name: (m.out_features, m.in_features) for name, m in linears.items()})
    if not found:
        raise ValueError(
            f"this {family.title} ({type(unet).__name__}) has none of its layers where ComfyUI has them, as Nunchaku's, which are fused "
            "and quantised: load it with ComfyUI's own loader"
        )
    return found


def noise_schedule(sampling: Any) -> Schedule:
    """Return the schedule of a model's sampling object, also one that ModelSamplingDiscrete has set. Raises ``ValueError`` for other
    predictions.
    """
    kind = next((PREDICTIONS[base] for base in type(sampling).__bases__ if base in PREDICTIONS), None)
    if kind is None or not isinstance(sampling, STEPPED):
        parts = ", ".join(base.__name__ for base in type(sampling).__bases__)
        raise ValueError(f"{ONLY} that predict epsilon, v or a flow in 1000 timesteps: this model's sampling is {parts}")
    sigmas = sampling.sigmas.clone().float().cpu()
    if kind == "flow":
        return Flow(1 - sigmas, sigmas, sampling.timestep(sigmas))
    return Schedule.of_alphas(1 / (1 + sigmas.double().square()), kind)


def family_in(model: ModelPatcher) -> Family | None:
    """The family of a MODEL, at any size, by the host's class for it, or the nearest that it is made of; ``None`` for one that is not
    known.
    """
    for kind in type(model.model.model_config).__mro__:
        if any(kind.__name__ in f.host.others for f in families()):
            return None
        if found := next((f for f in families() if kind.__name__ in f.host.models), None):
            return found
    return None


def reads_photo(model: ModelPatcher) -> bool:
    """Whether a MODEL is an inpainting one, which reads beside a latent the photo that is painted over and its mask: 9 channels for 4."""
    channels, latent = model.model.model_config.unet_config.get("in_channels"), model.model.latent_format.latent_channels
    return channels == 2 * latent + 1 and {*getattr(model.model, "concat_keys", ())} == {"mask", "masked_image"}


def block_names(model: ModelPatcher) -> dict[str, str]:
    """Canonical (diffusers) name -> the host's name of every transformer block, in layer order."""
    family, found = known_family(model), {}
    for name, own in _named_modules(model).items():
        if block := family.block_of(name):
            found[block] = own.removesuffix(name.removeprefix(block))
    return dict(sorted(found.items(), key=lambda item: family.place(item[0])))


def text_sites(model: ModelPatcher) -> dict[str, str]:
    """Canonical name -> the host's name of every layer that reads a text of its own, in layer order."""
    family, blocks = known_family(model), block_names(model)
    return {site: own + site.removeprefix(block) for block, own in blocks.items() for site in family.text_sites([block])}


def known_family(model: ModelPatcher) -> Family:
    """The family of a MODEL. Raises ``ValueError`` for one that is not known."""
    if family := family_in(model):
        return family
    raise ValueError(f"{ONLY}, and paints concepts on {painted_titles()}: this model is {type(model.model.model_config).__name__}")


def layerwise_family(model: ModelPatcher, photo: bool = False) -> Family:
    """The family of a MODEL whose layers each read a text. Raises ``ValueError`` for other models, and for one that reads more than noise;
    with ``photo`` an inpainting model is taken.
    """
    config, family = model.model.model_config, family_in(model)
    channels = config.unet_config.get("in_channels")
    if family is not None and not family.layerwise:
        raise ValueError(f"this model is {family.title}, which {PAINTED}: {NOT_YET}")
    if family is None or not (channels == model.model.latent_format.latent_channels or (photo and reads_photo(model))):
        kind = f"{type(config).__name__} with {channels} input channels"
        raise ValueError(f"{ONLY}, and paints concepts on {painted_titles()}: this model is {kind}")
    return family


def painted_titles() -> str:
    """The families on which concepts are only painted."""
    return ", ".join(family.title for family in families() if not family.layerwise)


def weight_keys(model: ModelPatcher) -> dict[str, str | tuple[str, tuple[int, int, int]]]:
    """The key of every layer's weight in a MODEL by canonical name, as the host's patches take it: that of a layer which lies in a fused
    one has the rows.
    """
    if known_family(model).layerwise:
        return {name: f"diffusion_model.{own}.weight" for name, own in layer_names(model).items()}
    have = dict(model.model.diffusion_model.named_modules())
    keys: dict[str, str | tuple[str, tuple[int, int, int]]] = {}
    for layer, at in layout(model).items():
        key = f"diffusion_model.{at.module}.weight"
        keys[layer] = key if at.rows == have[at.module].out_features else (key, (0, at.start, at.rows))
    return keys


def layer_names(model: ModelPatcher) -> dict[str, str]:
    """Canonical name -> the host's name of every linear layer and convolution."""
    have = dict(model.model.diffusion_model.named_modules())
    return {name: own for name, own in _named_modules(model).items() if isinstance(have[own], nn.Linear | nn.Conv2d)}


def _named_modules(model: ModelPatcher) -> dict[str, str]:
    """Canonical name -> the host's name of every module with weights, by the host's own table."""
    names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    pairs = ((d.removesuffix(".weight"), c.removesuffix(".weight")) for d, c in names.items() if d.endswith(".weight"))
    have = dict(model.model.diffusion_model.named_modules())
    return {d: c for d, c in pairs if c in have}
