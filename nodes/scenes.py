"""Concepts, regions and residuals on the host's MODEL: always on a clone, with the host's own wrappers.

What a row of a batch means travels with its text, and what is the same for all rows is a ``Scene`` that the clone holds. Both are read
around one call of the U-Net, whichever guider, patch or node has asked for it.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ..cidm_ops.concept_text import ConceptText, plain, plans_of
from ..cidm_ops.hub import Sites
from ..cidm_ops.painting.joint_run import JointRun
from ..cidm_ops.painting.reference import with_reference
from ..cidm_ops.painting.rows import Job
from ..cidm_ops.painting.run import SceneRun, Unet
from ..cidm_ops.painting.scene import InvertedPicture, Scene
from ..cidm_ops.painting.weaving import hold, hold_latents
from ..cidm_ops.row_plan import RowPlan
from .host import adapted, block_names, known_family, layer_names, text_sites, unadapted
from .joint import HostTransformer, ask_wrappers

KEY = "cidm"  # of the wrappers, and of the scene among a model's attachments


def scene_of(model: ModelPatcher) -> Scene:
    """Return what a model has beside its weights already."""
    return model.get_attachment(KEY) or Scene()


def with_scene(model: ModelPatcher, scene: Scene) -> ModelPatcher:
    """A clone of the model that paints the scene, and reads texts layer by layer."""
    patched, run = model.clone(), HostRun(model, scene)
    # functions, not methods: cloning a model copies the object of a method with it
    wrappers = {
        WrappersMP.DIFFUSION_MODEL: lambda *args, **kwargs: run.forward(*args, **kwargs),
        WrappersMP.OUTER_SAMPLE: lambda *args, **kwargs: run.sample(*args, **kwargs),
        WrappersMP.PREDICT_NOISE: lambda *args, **kwargs: run.predict_noise(*args, **kwargs),
        WrappersMP.CALC_COND_BATCH: lambda *args, **kwargs: run.guide(*args, **kwargs),
        WrappersMP.APPLY_MODEL: partial(ask_wrappers, KEY),
    }
    needless = {WrappersMP.PREDICT_NOISE: not scene.template, WrappersMP.CALC_COND_BATCH: not scene.masks or scene.guidance == 1}
    needless[WrappersMP.APPLY_MODEL] = known_family(model).host.wrapped
    for kind, wrapper in wrappers.items():
        patched.remove_wrappers_with_key(kind, KEY)
        if not needless.get(kind):
            patched.add_wrapper_with_key(kind, KEY, wrapper)
    patched.set_attachments(KEY, scene)
    return patched


def with_more(model: ModelPatcher, scene: Scene) -> ModelPatcher:
    """A clone of the model with a scene beside what it has already. Raises ``ValueError`` for regions or a template on a model that has
    either, and for a template beside a reference.
    """
    before = scene_of(model)
    places = [one for one in (before, scene) if one.masks or one.template]
    if len(places) > 1:
        does = "weaves into a template" if before.template else "paints in regions"
        by = "Weave" if scene.template else "Paint in Regions"
        raise ValueError(f"this model {does} already: give {by} the model before that, and all regions at once")
    placed = places[0] if places else before
    stacks = (*before.stacks, *scene.stacks)
    whole = replace(placed, stacks=stacks, infusion=before.infusion, reference=None)
    return with_scene(model, with_reference(whole, before.reference) if before.reference else whole)


class HostAttention:
    """The attention of queries ``[B, T, C]`` to keys and values ``[B, N, C]`` that the host computes, or another pack in its place:
    ``options`` are the host's, of the call of the U-Net that is under way. It holds no model, which would keep that one in memory.
    """

    def __init__(self) -> None:
        self.options: Mapping[str, Any] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return optimized_attention(q, k, v, heads, transformer_options=self.options)


class HostRun:
    """A scene on a MODEL of the host."""

    def __init__(self, model: ModelPatcher, scene: Scene):
        self.model, self.scene = model, scene
        self.sampling = model.get_model_object("model_sampling")
        self.attend, family = HostAttention(), known_family(model)
        self.transformer = None if family.layerwise else HostTransformer(model)
        self.run: SceneRun
        if self.transformer:
            self.run = JointRun(scene, self.transformer.names, self.attend, self.level_of, family)
        else:
            self.blocks, self.layers = block_names(model), layer_names(model)
            self.attentions, place = text_sites(model), family.host.patch_place
            self.places = {name: place(module) for name, module in self.attentions.items()}
            self.run = SceneRun(scene, list(self.places), self.attend, self.level_of)
        self.sites: dict[nn.Module, Any] = {}  # Sites, or JointSites of a transformer
        self.size: torch.Size | None = None  # of the latent that a run samples

    def level_of(self, part: float) -> float:
        """The noise level at a part of the sampling."""
        return float(self.sampling.percent_to_sigma(part))

    def sample(
        self, executor: WrapperExecutor, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """A run of the sampler: nothing is kept for the next. What is locked of a template comes out to the last bit."""
        self.run.begin()
        self.size = noise.shape[-2:]
        if self.scene.masks:
            self.give_texts(executor.class_obj)
        ends = False
        if template := self.scene.template:
            check_start(self.model, template.picture, noise, latent)
            # asked before the run: uni_pc writes 0.001 over the last of its sigmas, for all that come after it too
            ends = float(sigmas[-1]) < float(template.picture.trajectory.levels[1])
        try:
            found = executor(noise, latent, sampler, sigmas, *args, **kwargs)
            return hold_latents(self.scene, found) if ends else found
        finally:
            self.run.begin()
            self.size = None

    def give_texts(self, guider: Any) -> None:
        """If no text of a run says what regions read, as with a text of another encoder, what the guider calls its positive does.

        Raises ``ValueError`` for a guider that has no text of that name, and for a text that is half read.
        """
        conds = [c for kind in guider.conds.values() for c in kind or []]
        said = [c for c in conds if c.get("cross_attn") is not None and any(p and p.regions for p in plans_of(c["cross_attn"]))]
        if any(unadapted(self.model, c) for c in said):
            raise ValueError(
                "a text with those of regions was mixed with one of another node, which the model's adapter has not read yet: join "
                "texts of Paint in Regions only"
            )
        if said:
            return
        if not guider.conds.get("positive"):
            raise ValueError(
                f"the model has regions, and no text of {type(guider).__name__} says what they read: connect the conditioning of Paint "
                "in Regions"
            )
        for c in guider.conds["positive"]:
            [[text, more]] = adapted(guider.model_patcher, [[c["cross_attn"], dict(c)]])
            c.clear()
            c.update(more, cross_attn=with_regions(text, self.scene.texts))

    def guide(
        self, executor: WrapperExecutor, model: Any, conds: list, x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> list[Tensor]:
        """What the model takes for clean with each text, the positive one moved away from the negative where regions have more guidance.

        ``n + w (p - n)`` of a guider is then ``n + w m (p - n)`` with ``m`` at each cell, whatever it does about ``w``. Raises
        ``ValueError`` for guiders that do not compare one positive and one negative text.
        """
        found = executor(model, conds, x, timestep, options)
        if len(conds) == 1:  # a text on its own, as SelfAttentionGuidance asks for one
            return found
        if len(conds) != 2 or any(texts is None for texts in conds):
            raise ValueError(
                f"guidance of {self.scene.guidance:g} times that of the sampler in regions needs one positive and one negative text: take "
                "a KSampler or CFGGuider with a cfg above 1, or set region_guidance to 1"
            )
        wanted, unwanted = found
        much = self.run.guidance(wanted)
        much = much.unsqueeze(2) if wanted.ndim == 5 else much  # of every frame
        return [unwanted + much * (wanted - unwanted), unwanted]

    def predict_noise(self, executor: WrapperExecutor, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the guider takes for clean, with the template where no region is: there the sampler's own ``x`` counts for nothing."""
        held = hold(self.scene, x, float(sigma.max()))
        return hold(self.scene, executor(held, sigma, *args, **kwargs), 0.0)

    def forward(self, executor: WrapperExecutor, x: Tensor, t: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A pass through the U-Net."""
        scene = self.scene
        if not (scene.stacks or scene.masks or scene.template or scene.reference or isinstance(context, ConceptText)):
            return executor(x, t, context, *args, **kwargs)
        if self.scene.masks and self.size and x.shape[-2:] != self.size:
            raise ValueError(
                f"the model is given {x.shape[-2]} x {x.shape[-1]} of a latent of {self.size[0]} x {self.size[1]}: by an area of a text "
                "(ConditioningSetArea, ConditioningSetAreaPercentage, ConditioningSetMask to the mask's bounds) or by a node that cuts the "
                "image into tiles or ContextWindows. Where regions lie in such a part nobody says: take it off, or the regions"
            )
        options = options_of(*args, *kwargs.values())
        keys, count = options.get("uuids") or [None], len(x)
        sigmas = options.get("sigmas")
        sigma = float("inf") if sigmas is None else float(sigmas.max())
        sites = self.sites_of(executor.class_obj, options.get("patches_replace", {}).get("attn2", {}))
        execute = self.transformer.around(executor, sites.slot, context) if self.transformer else executor
        framed = x.ndim == 5
        if framed:
            x = one_picture(x)

        def call(jobs: Sequence[Job], rows: Sequence[int], x: Tensor, text: Tensor) -> Tensor:
            x = x[:, :, None] if framed else x
            if list(rows) == list(range(count)):
                self.attend.options = options
                return unframed(execute(x, t, text, *args, **kwargs))
            check_added(options)
            picked = [of_jobs(value, jobs, rows, count) for value in (t, *args)]
            more = {key: of_jobs(value, jobs, rows, count) for key, value in kwargs.items()}
            self.attend.options = options_of(*picked, *more.values())
            with naming(executor.wrappers[executor.idx + 1 :]):
                return unframed(execute(x, picked[0], text, *picked[1:], **more))

        def unframed(answer: Tensor) -> Tensor:
            return answer[:, :, 0] if framed else answer

        def background(x: Tensor) -> Tensor:
            channels = self.model.model.latent_format.latent_channels  # an inpainting model reads more
            level = torch.full((len(x), 1, 1, 1), sigma).to(x)
            noise = torch.randn(x[:, :channels].shape, generator=torch.Generator().manual_seed(0)).to(x) * level
            return torch.cat([self.sampling.calculate_input(level, noise), x[:, channels:]], 1)

        def template(x: Tensor) -> Tensor:
            assert self.scene.template is not None
            channels = self.model.model.latent_format.latent_channels
            own = self.scene.template.at(sigma, x[:, :channels].float())
            read = self.sampling.calculate_input(torch.full((len(x), 1, 1, 1), sigma).to(own), own)
            return torch.cat([read.to(x), x[:, channels:]], 1)

        def reference(x: Tensor, number: int) -> Tensor:
            assert self.scene.reference is not None
            channels = self.model.model.latent_format.latent_channels
            clean, noise = self.scene.reference.picture(number, x[:, :channels].float())
            level = torch.full((len(x), 1, 1, 1), sigma).to(clean)
            read = self.sampling.calculate_input(level, self.sampling.noise_scaling(level, noise, clean))
            return torch.cat([read.to(x), x[:, channels:]], 1)

        def fits(rows: int) -> bool:
            needed = self.model.model.memory_required([rows, *x.shape[1:]]) * 1.5  # as the host reckons
            return needed < comfy.model_management.get_free_memory(x.device)

        try:
            found = self.run.predict(sites, x, context, sigma, keys, Unet(call, background, template, reference, fits))
            return found[:, :, None] if framed else found
        finally:
            self.attend.options = {}

    def sites_of(self, unet: Any, replaced: Mapping[tuple, Any]) -> Any:
        """The places of the model, and the cross-attentions that another pack computes."""
        if self.transformer and unet not in self.sites:
            self.sites[unet] = self.transformer.sites(unet)
        if self.transformer:
            return self.sites[unet]
        if unet not in self.sites:
            blocks = {name: unet.get_submodule(module) for name, module in self.blocks.items()}
            cross_attention = {name: unet.get_submodule(module) for name, module in self.attentions.items()}
            layers = {name: unet.get_submodule(module) for name, module in self.layers.items()}
            self.sites[unet] = Sites.of(unet, blocks, cross_attention, layers)
        taken = frozenset(name for name, place in self.places.items() if place in replaced or place[:2] in replaced)
        return replace(self.sites[unet], replaced=taken) if taken else self.sites[unet]


def options_of(*args: Any) -> dict[str, Any]:
    """The host's options among the arguments of the U-Net."""
    return next((a for a in args if isinstance(a, dict) and "uuids" in a), {})


def one_picture(x: Tensor) -> Tensor:
    """Latents ``[B, C, h, w]`` of pictures that a model reads as films of one frame, ``[B, C, 1, h, w]``. Raises ``ValueError`` for longer
    ones.
    """
    if x.shape[2] != 1:
        raise ValueError(
            f"the latent has {x.shape[2]} frames or layers, and which of them a concept beside the layers or a region is in, nobody says: "
            "take a latent of one picture, or concepts merged into the weights"
        )
    return x[:, :, 0]


ROWS_ADDED = (
    "and Infusion's second stream, passes for single regions, the template of Weave and the pictures of Reference Attention add rows: take "
    "stream single or preset fast, keep nothing of the template, or take it off"
)


def start_of(model: ModelPatcher, picture: InvertedPicture) -> Tensor:
    """The noise that a picture was inverted to, as a LATENT ``[P, C, h, w]`` to which a sampler adds none.

    Raises ``ValueError`` where a flow ends in noise alone, which the host's samplers cannot be given so.
    """
    sampling, way = model.get_model_object("model_sampling"), picture.trajectory
    noise = sampling.inverse_noise_scaling(way.levels[-1], way.states[-1])
    if not bool(noise.isfinite().all()):
        raise ValueError("the sigmas of this flow begin at 1, where nothing is left of a latent: take sigmas that begin a little below")
    return model.model.process_latent_out(noise)


def check_start(model: ModelPatcher, picture: InvertedPicture, noise: Tensor, latent: Tensor) -> None:
    """Raises ``ValueError`` where a sampler adds noise to a template that is noise already."""
    if not bool(noise.any()) or latent.shape[1:] != picture.trajectory.states.shape[2:]:
        return
    if torch.allclose(latent[:1].float().cpu(), start_of(model, picture)[:1].float().cpu(), 1e-3, 1e-3):
        raise ValueError(
            "the latent of Weave is noise already and the sampler adds more: take SamplerCustom with add_noise off, or KSampler (Advanced) "
            "with add_noise disabled; for another picture each time take an empty latent of the same size"
        )


def check_added(options: Mapping[str, Any]) -> None:
    """Refuses other nodes that know one row of a kind, where rows are added: patches that ask which half of the batch is which would pass
    over them, and the EasyCache of older hosts adds what it kept of each row to all of them. Raises ``ValueError`` with their names.
    """
    for patch in (patch for kind in options.get("patches", {}).values() for patch in kind):
        code = getattr(patch, "__code__", None) or getattr(type(patch).__call__, "__code__", None)
        if "cond_or_uncond" in getattr(code, "co_consts", ()):
            raise ValueError(f"{title(patch)} takes rows of a batch by their places, as NAGuidance does, {ROWS_ADDED}")
    cache = options.get("easycache")
    if cache is not None and not hasattr(cache, "can_apply_cache_diff"):
        raise ValueError(f"the EasyCache of this ComfyUI adds what it kept of each row to all of them, {ROWS_ADDED}, or update ComfyUI")


@contextmanager
def naming(wrappers: Sequence[Any]) -> Iterator[None]:
    """Say what fails around the U-Net where rows are added with the names of other packs' ``wrappers``: they may keep something
    for each row of the sampler's batch, as Advanced-ControlNet's reference does. Raises ``ValueError``.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.cuda.OutOfMemoryError) or not wrappers:
            raise
        names = ", ".join(map(title, wrappers))
        raise ValueError(f"this model is wrapped by {names}, which may not know rows that are added, {ROWS_ADDED} ({error})") from error


def title(patch: Any) -> str:
    """Say what a function or object of another pack is called, and its file; the host names modules of nodes by their paths."""
    named = patch if hasattr(patch, "__name__") else type(patch)
    return f"{named.__name__} of {named.__module__.replace(chr(92), '/').rpartition('/')[2]}"


def with_regions(text: Tensor, regions: Sequence[ConceptText]) -> ConceptText:
    """A text whose rows say what regions read."""
    plans = [replace(plan or RowPlan(), regions=tuple(regions), key=object()) for plan in plans_of(text)]
    return ConceptText.of(plain(text), plans)


def of_jobs(value: Any, jobs: Sequence[Job], rows: Sequence[int], count: int) -> Any:
    """Return what an argument of the U-Net for a batch of ``count`` rows is for some of its ``rows``: tensors, ControlNet's lists, and the
    host's options, which tell other packs how a batch is divided.
    """
    if isinstance(value, Tensor):
        return value[list(rows)] if value.ndim and len(value) == count else value
    if isinstance(value, dict) and "uuids" in value:
        named = [uuid_of(value["uuids"][job.chunk], job) for job in jobs]
        return {**value, "uuids": named, "cond_or_uncond": [value["cond_or_uncond"][job.chunk] for job in jobs]}
    if isinstance(value, dict):
        return {key: of_jobs(entry, jobs, rows, count) for key, entry in value.items()}
    if isinstance(value, list):
        return [of_jobs(entry, jobs, rows, count) for entry in value]
    return value


def uuid_of(of_text: Any, job: Job) -> Any:
    """The host's id of a text, or, for what a text goes through the model for besides, an id of its own, the same in every step."""
    if job.region <= 0 and not job.foundation and not job.guest:
        return of_text
    guest = " template" * job.template + f" reference {job.reference}" * (job.reference > 0)
    return uuid.uuid5(of_text, f"{job.region} {job.foundation}{guest}")
