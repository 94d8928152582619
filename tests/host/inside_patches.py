"""The host's model patches before and after models with concepts, regions and Infusion: see subjects.py. A part of inside_table.py."""

import functools
import json

from subjects import (
    AFTER,
    BEFORE,
    FELT,
    PLAIN,
    SAID,
    SUBJECTS,
    TABLE,
    TOLERANCE,
    Patch,
    Scene,
    Subject,
    apart,
    attempt,
    call,
    check_all,
    exists,
    scene,
    verdict,
    write_factors,
)  # fmt: skip

# isort: split

import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import torch
from comfy.ldm.modules.attention import optimized_attention

from nodes import NODE_CLASS_MAPPINGS

DOWNSCALE = {"block_number": 3, "start_percent": 0.0, "end_percent": 1.0, "downscale_after_skip": True}
DOWNSCALE |= {"downscale_method": "bicubic", "upscale_method": "bicubic"}
SHRINK = ("downscale", "shrink")
SCALES = {"q": 1.0, "k": 1.1, "v": 0.9, "out": 1.1}
TIMES = {"self_structural": 1.1, "self_temporal": 1.0, "cross_structural": 0.9, "cross_temporal": 1.0}
CACHE = {"reuse_threshold": 0.5, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}
WINDOWS = {"context_overlap": 2, "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False, "fuse_method": "pyramid"}
LONG = {"steps": 12}
BATCH = {"shape": (3, 16, 16, 16)}
SOFT = {"latent": {"noise_mask": torch.linspace(0, 1, 16).expand(1, 1, 16, 16)}, "steps": 3}

PATCHES = [
    Patch("FreeU", {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}),
    Patch("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
    Patch("HyperTile", {"tile_size": 64, "swap_size": 2, "max_depth": 2, "scale_depth": False}, ("tile",)),
    Patch("TomePatchModel", {"ratio": 0.3}, ("ToMe", "merg")),
    Patch("PatchModelAddDownscale", {**DOWNSCALE, "downscale_factor": 2.0}, SHRINK, label="PatchModelAddDownscale 2.0"),
    Patch("PatchModelAddDownscale", {**DOWNSCALE, "downscale_factor": 1.5}, SHRINK, label="PatchModelAddDownscale 1.5"),
    Patch("UNetSelfAttentionMultiply", SCALES, scales=True),
    Patch("UNetCrossAttentionMultiply", SCALES, scales=True),
    Patch("UNetTemporalAttentionMultiply", TIMES, scales=True),
    Patch("PerturbedAttentionGuidance", {"scale": 3.0}),
    Patch("SelfAttentionGuidance", {"scale": 0.5, "blur_sigma": 2.0}),
    Patch("NAGuidance", {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
    Patch("PerpNeg", {"empty_conditioning": lambda s: s.text(""), "neg_scale": 1.0}),
    Patch("RescaleCFG", {"multiplier": 0.7}),
    Patch("CFGZeroStar"),
    Patch("CFGNorm", {"strength": 1.0}),
    Patch("CFGOverride", {"cfg": 2.0, "start_percent": 0.0, "end_percent": 1.0}),
    Patch("TCFG"),
    Patch("APG", {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.2}),
    Patch("Mahiro"),
    Patch("RenormCFG", {"cfg_trunc": 100.0, "renorm_cfg": 1.0}),
    Patch("FreSca", {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 4}),
    Patch("VideoLinearCFGGuidance", {"min_cfg": 1.0}, paint=BATCH),
    Patch("VideoTriangleCFGGuidance", {"min_cfg": 1.0}, paint=BATCH),
    Patch("LatentApplyOperationCFG", {"operation": lambda s: call("LatentOperationTonemapReinhard", multiplier=1.0)}),
    Patch("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": False}, label="ModelSamplingDiscrete v"),
    Patch("ModelSamplingDiscrete", {"sampling": "eps", "zsnr": True}, label="ModelSamplingDiscrete zsnr"),
    Patch("ModelSamplingSD3", {"shift": 3.0}),
    Patch("ModelSamplingContinuousEDM", {"sampling": "eps", "sigma_max": 14.0, "sigma_min": 0.03}, ("sampling",)),
    Patch("ModelSamplingContinuousV", {"sampling": "v_prediction", "sigma_max": 14.0, "sigma_min": 0.03}, ("sampling",)),
    Patch("ModelComputeDtype", {"dtype": "fp32"}),
    Patch("ModelAttentionBackend", {"attention": "pytorch attention"}),
    Patch("Epsilon Scaling", {"scaling_factor": 1.02}),
    Patch("TemporalScoreRescaling", {"tsr_k": 0.9, "tsr_sigma": 1.0}),
    Patch("DifferentialDiffusion", {"strength": 1.0}, paint=SOFT),
    Patch("EasyCache", CACHE, ("EasyCache", "cache"), paint=LONG),
    Patch("LazyCache", CACHE, ("LazyCache", "cache"), paint=LONG),
    Patch("ContextWindowsManual", {**WINDOWS, "context_length": 8, "dim": 3}, ("window",), label="ContextWindowsManual, width"),
]  # fmt: skip
PATCHES = [patch for patch in PATCHES if exists(patch.node)]


def alike(number: int) -> int:
    """The first patch that is painted in the same way."""
    return next(i for i, patch in enumerate(PATCHES) if patch.paint is PATCHES[number].paint or patch.paint == PATCHES[number].paint == {})


LEFT_OUT = {
    **dict.fromkeys(("LoraLoader", "LoraLoaderModelOnly", "LoraModelLoader", "LoraLoaderBypass", "LoraLoaderBypassModelOnly"), "a loader"),
    **dict.fromkeys(("HypernetworkLoader",), "a loader of weights that nobody here has"),
    **dict.fromkeys(("ModelMergeSimple", "ModelMergeBlocks", "ModelMergeSubtract", "ModelMergeAdd"), "arithmetic on weights of two models"),
    **dict.fromkeys(("ModelSamplingStableCascade", "ModelSamplingAuraFlow", "ModelSamplingFlux"), "for another model"),
    "ModelNoiseScale": "for models of a flow whose sampling has a noise scale",
    "TrainLoraNode": "trains",
    "TorchCompileModel": "needs a compiler",
    "MultiGPU_WorkUnits": "needs several GPUs",
    "SelectModelDevice": "needs several devices",
    "ScaleROPE": "for models with rotary positions",
    "wanBlockSwap": "does nothing",
    "WanContextWindowsManual": "for video",
    "LTXVContextWindows": "for video",
}
OTHER_MODELS = {  # by the file of the host that they are in
    "nodes_ar_video", "nodes_bernini", "nodes_chroma_radiance", "nodes_flux", "nodes_hidream_o1", "nodes_lt", "nodes_minimax_h3",
    "nodes_model_merging_model_specific", "nodes_model_patch", "nodes_sd3", "nodes_slg", "nodes_triposplat", "nodes_wan",
}  # fmt: skip


def the_table_has_every_model_patch_of_the_host():
    missing = []
    for name, node in NODE_CLASS_MAPPINGS.items():
        taken = [str(entry[0]) for part in ("required", "optional") for entry in node.INPUT_TYPES().get(part, {}).values()]
        fits = "MODEL" in taken and "MODEL" in map(str, node.RETURN_TYPES)
        known = node.__module__.rpartition("/")[2] in OTHER_MODELS or name in {*LEFT_OUT, *(patch.node for patch in PATCHES)}
        missing += [name] if fits and not known else []
    assert not missing, f"nodes that the table lacks: {missing}"


@functools.cache
def plainly(number: int, lora: bool, said: str, order: str = BEFORE, patched: bool = True) -> torch.Tensor:
    """What the host alone paints with a patch of the list, or as it is painted but without; the twin's LoRA comes after it where the
    patch is *before*.
    """
    s, patch = scene(), PATCHES[number]
    model = s.with_lora(s.model) if lora and order == AFTER else s.model
    model = patch.apply(s, model) if patched else model
    model = s.with_lora(model) if lora and order == BEFORE else model
    return s.paint(model, s.text(said), **patch.paint)


@functools.cache
def untouched(name: str, number: int) -> torch.Tensor:
    """A lively subject without a patch, painted as that one is."""
    return scene().paint(*unpatched(SUBJECTS[name].lively), **PATCHES[number].paint)


@functools.cache
def unpatched(make) -> tuple:
    """A model of ours and its positive text before any patch, made once: patches of the host work on clones."""
    return make(scene(), scene().model)


def chained(s: Scene, patch: Patch, make, order: str) -> torch.Tensor:
    """A patch of the host and a model of ours, in this order."""
    if order == BEFORE:
        model, positive = make(s, patch.apply(s, s.model))
    else:
        model, positive = unpatched(make)
        model = patch.apply(s, model)
    return s.paint(model, positive, **patch.paint)


def beside(subject: Subject, orders=(BEFORE, AFTER), lively=()) -> None:
    """Every patch of the table with a subject: what must be equal is, or is refused by name, and none is silent."""
    s, found = scene(), {}
    for number, patch in enumerate(PATCHES):
        because = (patch.node, *patch.because)
        for order in orders:
            where = order if patch.scales and subject.weights else BEFORE
            try:
                want = plainly(number, subject.lora, SAID.get(subject.name, PLAIN), where)
            except Exception as error:
                found[patch.title, subject.name] = f"FAILS: the host alone cannot: {error}"
                continue
            got = attempt(lambda: chained(s, patch, subject.make, order), because)  # noqa: B023 -- called at once
            found[patch.title, f"{subject.name}, {order}"] = verdict(got, want)
        if lively:
            found |= {(patch.title, f"{subject.name}, {key}"): said for key, said in alive(s, number, patch, subject, because).items()}
    TABLE.check(found, subject.column)


def alive(s: Scene, number: int, patch: Patch, subject: Subject, because) -> dict[str, str]:
    """With words and places that differ: the order makes no difference, and a patch that the plain model feels is felt."""
    first, second = (attempt(lambda order=order: chained(s, patch, subject.lively, order), because) for order in (BEFORE, AFTER))
    if isinstance(first, str) or isinstance(second, str):
        return {f"lively, {order}": said for order, said in ((BEFORE, first), (AFTER, second)) if isinstance(said, str)}
    said = {} if patch.scales and subject.weights else {"lively": verdict(first, second, "the other order")}
    felt = apart(plainly(number, False, PLAIN), plainly(alike(number), False, PLAIN, patched=False))
    ours = apart(second, untouched(subject.name, alike(number)))
    if felt > FELT and ours <= FELT:
        said["lively"] = f"FAILS: silent: the plain model changes by {felt:.2g}, this one by {ours:.2g}"
    return said


def the_patches_act_alike_on_merged_concepts():
    beside(SUBJECTS["merged concepts"], orders=(AFTER,))


def the_patches_act_alike_on_routed_concepts():
    beside(SUBJECTS["routed concepts"])


def the_patches_act_alike_on_a_style():
    beside(SUBJECTS["a style"], orders=(AFTER,))


def the_patches_act_alike_in_regions():
    beside(SUBJECTS["regions"], lively=True)


def the_patches_act_alike_beside_region_noise():
    beside(SUBJECTS["region noise"], orders=(AFTER,))


def the_patches_act_alike_beside_infusion():
    beside(SUBJECTS["Infusion"], lively=True)


def foreign(calls: list, thing: bool = False):
    """Another pack's replacement of an attention: half of what the values give. As a ``thing`` it has ``add``, as IPAdapter_plus' has,
    which puts a second one into what it finds.
    """

    def attention(q, k, v, extra):
        calls.append(len(q))
        return optimized_attention(q, k, 0.5 * v, extra["n_heads"])

    class Replacement:
        def __init__(self):
            self.callbacks = [attention]

        def add(self, callback):
            self.callbacks.append(callback)

        def __call__(self, q, k, v, extra):
            return sum(callback(q, k, v, extra) for callback in self.callbacks)

    return Replacement() if thing else attention


def replaced(model, calls: list, parts: int, thing: bool):
    """A clone with the replacement in every cross-attention, under keys of two parts or three."""
    model = model.clone()
    there = model.model_options["transformer_options"].setdefault("patches_replace", {}).setdefault("attn2", {})
    for kind, numbers in (("input", range(12)), ("middle", [0]), ("output", range(12))):
        for number in numbers:
            key = (kind, number) if parts == 2 else (kind, number, 0)
            if thing and key in there:
                there[key].add(foreign(calls))
            else:
                model.set_model_attn2_replace(foreign(calls, thing), *key)
    return model


def the_replacement_of_another_pack_acts_or_is_refused():
    """Set as the host's own function does, or as IPAdapter_plus does; before ours and after; with ours acting as well."""
    s, found = scene(), {}
    because = ("another pack", "replace", "attn2")
    host = s.paint(replaced(s.model, [], 3, False), s.text(PLAIN))
    for name, orders in (("routed concepts", (BEFORE, AFTER)), ("regions", (BEFORE, AFTER)), ("Infusion", (BEFORE, AFTER))):
        subject = SUBJECTS[name]
        bare, exact = untouched(name, 0), name != "regions"
        want = s.paint(replaced(s.with_lora(s.model) if subject.lora else s.model, [], 3, False), s.text(PLAIN)) if exact else None
        for parts in (2, 3):
            for thing in (False, True):
                for order in orders:
                    calls: list = []

                    def painted(make, order=order, parts=parts, thing=thing, calls=calls):
                        if order == BEFORE:
                            return s.paint(*make(s, replaced(s.model, calls, parts, thing)))
                        model, positive = make(s, s.model)
                        return s.paint(replaced(model, calls, parts, thing), positive)

                    got = attempt(lambda: painted(subject.lively), because)  # noqa: B023 -- called at once
                    said = got if isinstance(got, str) else "acts"
                    if not isinstance(got, str):
                        if not calls or apart(got, bare) <= FELT:
                            said = f"FAILS: silent: called {len(calls)} times, the picture changes by {apart(got, bare):.2g}"
                        elif apart(got, host) <= FELT:
                            said = "FAILS: ours is gone"
                        elif exact:
                            neutral = attempt(lambda: painted(subject.make), because)  # noqa: B023
                            said = verdict(neutral, want)
                    label = f"{name}, {order}, {parts}-part key" + (", with add" if thing else "")
                    found["another pack's attn2 replacement", label] = said
    for column in ("concepts", "regions", "Infusion"):
        mine = {key: said for key, said in found.items() if SUBJECTS[key[1].split(",")[0]].column == column}
        for (node, subject), said in mine.items():
            TABLE.note(node, column, subject, said)
    check_all(found)


def coupled(model, other):
    """A clone with an attention couple as other packs make it: rows of a batch are read twice inside attn2, with two texts."""
    model = model.clone()

    def twice(q, k, v, extra):
        text = other.repeat(len(k), k.shape[1] // other.shape[1], 1).to(k) if k.ndim == 3 else k
        return torch.cat([q, q]), torch.cat([k, text]), torch.cat([v, text])

    def once(out, extra):
        return sum(out.chunk(2)) / 2

    model.set_model_attn2_patch(twice)
    model.set_model_attn2_output_patch(once)
    return model


def the_second_attention_couple_acts_or_is_refused():
    """One that multiplies the rows inside attn2, as prompt-control's does, of a batch and of one row: the host's own picture, or an error
    that says what it is.
    """
    s, found = scene(), {}
    other = s.text("a red castle on the beach")[0][0]
    because = ("couple", "rows inside", "multiplies")

    def painted(make, order, **how):
        if order == BEFORE:
            return s.paint(*make(s, coupled(s.model, other)), **how)
        model, positive = make(s, s.model)
        return s.paint(coupled(model, other), positive, **how)

    for name in ("merged concepts", "routed concepts", "regions", "Infusion"):
        subject = SUBJECTS[name]
        base = s.with_lora(s.model) if subject.lora else s.model
        for guidance in (4.0, 1.0):
            want = s.paint(coupled(base, other), s.text(PLAIN), cfg=guidance)
            assert apart(want, s.paint(base, s.text(PLAIN), cfg=guidance)) > FELT
            for order in (BEFORE, AFTER):
                got = attempt(lambda: painted(subject.make, order, cfg=guidance), because)  # noqa: B023 -- called at once
                label = f"{name}, guidance {guidance:g}, {order}"
                found["another attention couple", label] = verdict(got, want)
                TABLE.note("another attention couple", subject.column, label, verdict(got, want))
    silent = {"a style": "it acts at its words in a text that is not its own", "regions": "they lie in rows that are not theirs"}
    for name, why in silent.items():
        for guidance in (4.0, 1.0):
            got = attempt(lambda: painted(SUBJECTS[name].lively, AFTER, cfg=guidance), because)  # noqa: B023
            label, said = f"{name}, lively, guidance {guidance:g}", got if isinstance(got, str) else f"FAILS: silent: {why}"
            found["another attention couple", label] = said
            TABLE.note("another attention couple", SUBJECTS[name].column, label, said)
    check_all(found)


def set_beside(title: str, apply, names, because=()) -> None:
    """Something that another pack does to a model, before ours and after: the host's own picture, or an error that names it."""
    s, found = scene(), {}
    for name in names:
        subject = SUBJECTS[name]
        base = s.with_lora(s.model) if subject.lora else s.model
        want = s.paint(apply(base), s.text(SAID.get(name, PLAIN)))
        assert apart(want, s.paint(base, s.text(SAID.get(name, PLAIN)))) > FELT, "the host alone"
        for order in (BEFORE, AFTER):

            def painted(order=order, make=subject.make):
                if order == BEFORE:
                    return s.paint(*make(s, apply(s.model)))
                model, positive = make(s, s.model)
                return s.paint(apply(model), positive)

            found[title, f"{name}, {order}"] = verdict(attempt(painted, because), want)
            TABLE.note(title, subject.column, f"{name}, {order}", found[title, f"{name}, {order}"])
    check_all(found)


def the_attention_function_of_another_pack_is_that_of_regions_too():
    """Set as KJNodes sets SageAttention: here the values are halved, so that what it does not compute shows."""

    def halving(function, q, k, v, *args, **kwargs):
        return function(q, k, 0.5 * v, *args, **kwargs)

    def apply(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = halving
        return model

    set_beside("another pack's attention function", apply, SUBJECTS)


def the_wrapper_that_keeps_something_for_each_row_acts_or_is_refused():
    """Set while a run samples, as Advanced-ControlNet's reference is: what it adds has as many rows as the sampler's batch."""

    def two_rows(executor, x, *args, **kwargs):
        return executor(x, *args, **kwargs) + 0.1 * torch.ones(2, 1, 1, 1)

    def in_a_run(executor, *args, **kwargs):
        guider = executor.class_obj
        guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
        kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
        comfy.patcher_extension.add_wrapper_with_key(kind, "rows", two_rows, guider.model_options, is_model_options=True)
        return executor(*args, **kwargs)

    def apply(model):
        model = model.clone()
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "rows", in_a_run)
        return model

    names = ("merged concepts", "routed concepts", "regions", "region noise", "Infusion")
    set_beside("another pack's wrapper that knows the rows of a batch", apply, names, ("two_rows",))


def the_patch_that_asks_for_rows_by_place_is_found_in_an_object():
    """NAGuidance's is a function; other packs' are objects that are called."""

    class Negated:
        def __call__(self, out, extra):
            kinds = list(extra.get("cond_or_uncond", ()))
            if sorted(kinds) != [0, 1]:  # one positive and one negative, as it knows a batch
                return out
            return out + 0.2 * out[[kinds.index(1 - kind) for kind in kinds]]

    def apply(model):
        model = model.clone()
        model.set_model_attn2_output_patch(Negated())
        return model

    names = ("merged concepts", "routed concepts", "regions", "region noise", "Infusion")
    set_beside("another pack's patch that knows rows by their places", apply, names, ("Negated",))


def the_concept_of_a_region_keeps_to_its_place_in_hypertile():
    """A concept on the queries of self-attention, in the left half of 512 pixels: outside of it no query is another."""
    s = scene()
    write_factors("far", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    bank = call("CIDMOpenBank", name="table")
    tiles = {"tile_size": 128, "swap_size": 1, "max_depth": 3, "scale_depth": False}
    box = [{"text": "an ohwx dog", "box": [0, 0, 0.5, 1]}]

    def seen(text: str, order: str | None) -> torch.Tensor:
        """What leaves the first self-attention, ``[B, T, C]``."""
        model, kept = s.model, []
        boxes = [{**box[0], "text": text}]
        model = call("HyperTile", model=model, **tiles) if order == BEFORE else model
        given = {"clip": s.clip, "bank": bank, "regions": call("CIDMRegionBoxes", boxes=json.dumps(boxes)), "text": "an other dog"}
        model, positive = call("CIDMPaintRegions", model=model, **given, preset="fast", mode="exact", strength=1.0)[:2]
        model = call("HyperTile", model=model, **tiles) if order == AFTER else model.clone()
        model.set_model_attn1_output_patch(lambda out, extra: kept.append(out.clone()) or out)
        s.paint(model, positive, shape=(1, 4, 64, 64), steps=1)
        return kept[0]

    wrong = []
    for order in (None, BEFORE, AFTER):
        with_it = attempt(lambda: seen("an ohwx dog", order), ("tile",))  # noqa: B023
        without = attempt(lambda: seen("an other dog", order), ("tile",))  # noqa: B023
        if isinstance(with_it, str) or isinstance(without, str):
            said = next(said for said in (with_it, without) if isinstance(said, str))
        else:
            off = (with_it - without).abs().amax((0, 2)).view(32, 32)
            inside, outside, least = float(off[:, :16].max()), float(off[:, 16:].max()), float(off[:, :16].min())
            said = "equal" if outside <= 1e-5 * inside and least > 0 else f"FAILS: {outside:.2g} outside of its region, {inside:.2g} in it"
        if order is None:
            assert said == "equal", f"without HyperTile: {said}"
        else:
            TABLE.note("HyperTile", "regions", f"a concept on self-attention, 512 px, {order}", said)
        wrong += [f"{order}: {said}"] if said.startswith("FAILS") else []
    assert not wrong, "\n".join(wrong)


def the_context_windows_read_the_regions_that_they_show():
    """Two windows side by side, no overlap, one region in each: each is painted as a picture of its own, or the node is refused."""
    s, because = scene(), ("window",)
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    windows = {"context_length": 8, "context_overlap": 0, "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False}
    windows |= {"fuse_method": "flat", "dim": 3}
    if "causal_window_fix" in NODE_CLASS_MAPPINGS["ContextWindowsManual"].INPUT_TYPES()["required"]:
        windows["causal_window_fix"] = False  # it puts a column of another window before each

    def painted(model, positive, noise=noise):
        latent = torch.zeros_like(noise)
        return comfy.sample.sample(model, noise, 1, 4.0, "euler", "normal", positive, s.negative, latent, seed=1)

    def windowed(model):
        return call("ContextWindowsManual", model=model, **windows)

    left, right = "a dog in the snow", "a red castle on the beach"
    parts = [painted(s.model, s.text(text), part) for text, part in zip((left, right), noise.chunk(2, -1), strict=True)]
    alone = [painted(s.model, s.text(left), part) for part in noise.chunk(2, -1)]
    assert apart(painted(windowed(s.model), s.text(left)), torch.cat(alone, -1)) <= TOLERANCE, "the host alone"
    for order in (BEFORE, AFTER):

        def in_windows(order=order):
            model = windowed(s.model) if order == BEFORE else s.model
            model, positive = s.painted_in_regions(model, "in the snow", left, right)
            return painted(windowed(model) if order == AFTER else model, positive)

        said = verdict(attempt(in_windows, because), torch.cat(parts, -1), "windows painted one by one")
        TABLE.note("ContextWindowsManual", "regions", f"a region in each window, {order}", said)
        assert not said.startswith("FAILS"), f"{order}: {said}"
