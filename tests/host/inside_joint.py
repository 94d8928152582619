"""Checks of regions on transformers inside a ComfyUI, as in inside.py: what a text and a LoRA do to a whole picture they do in their place,
on small random models of the host's own classes.
"""

import functools
import tempfile
from dataclasses import replace
from typing import Any

from inside import equal
from inside_transformers import SPELLINGS, imported, lora_file

# isort: split

import comfy.controlnet
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.supported_models
import torch
from comfy.ldm.flux.controlnet import ControlNetFlux
from comfy.ldm.qwen_image.controlnet import QwenImageControlNetModel
from host_transformers import (
    ARCHITECTURES,
    CONFIGS,
    FILMS,
    NEWEST,
    POOLED,
    TEXT,
    flux_clip,
    model_of,
)
from pack.cidm_ops.bank.concept import Concept
from pack.cidm_ops.concept_text import ConceptText
from pack.cidm_ops.method.pieces import pieces_of
from pack.cidm_ops.method.regions import RegionMask, box_mask
from pack.cidm_ops.models.registry import family_of
from pack.cidm_ops.painting import joint_call
from pack.cidm_ops.painting.config import NoiseEstimation
from pack.cidm_ops.painting.scene import ConceptStack, Scene
from pack.cidm_ops.row_plan import RowPlan
from pack.nodes import patches, scenes
from subjects import call

ALL_OVER, LEFT, RIGHT = torch.ones(8, 8), box_mask(0, 0, 0.5, 1), box_mask(0.5, 0, 1, 1)
# Z-Image fills up an image to a multiple of 32 tokens with some whose places are absolute: only without those is a text the same elsewhere.
SIZES = {kind: (8, 16) if kind == "ZImage" else (7, 10) for kind in CONFIGS}
ROUNDED = 1e-5  # of the largest value, fp32
LEAST = {"Flux2": 512}  # tokens of a text


def filled(kind: str, text: torch.Tensor) -> torch.Tensor:
    """A text as long as the host's encoder of Flux.2 Klein makes each; the host fills up shorter ones in front."""
    return torch.nn.functional.pad(text, (0, 0, max(LEAST.get(kind, 0) - text.shape[1], 0), 0))


def text_of(length: int, seed: int) -> torch.Tensor:
    """A random text ``[1, N, C]``."""
    return torch.randn(1, length, TEXT, generator=torch.Generator().manual_seed(seed))


OTHER, OWN, THIRD, UNWANTED = (text_of(length, seed) for seed, length in enumerate((5, 11, 40, 11)))


def conditioning(kind: str, text: torch.Tensor, *regions: torch.Tensor, **more: Any) -> list:
    """A CONDITIONING of a text, with texts of regions if there are any."""
    given = (
        {"attention_mask": torch.ones(1, text.shape[1], dtype=torch.long)}
        if kind in ("Lumina2", "ZImage")
        else {"pooled_output": torch.ones(1, POOLED)}
        if kind not in (*FILMS, "Flux2")
        else {}
    )
    text, *regions = (filled(kind, each) for each in (text, *regions))
    if regions:
        text = ConceptText.of(text, [RowPlan(regions=tuple(ConceptText.of(region, [RowPlan()]) for region in regions))])
    return [[text, given | more]]


def latent_of(kind: str, height: int, width: int, count: int = 1) -> torch.Tensor:
    """Empty latents as a family has them: those of Qwen-Image, Anima and Krea 2 are films of one frame."""
    return torch.zeros(count, 128 if kind == "Flux2" else 16, *([1] if kind in FILMS else []), height, width)


def painted(kind: str, model: Any, positive: list, cfg: float = 1.0, size: tuple[int, int] = (0, 0), count: int = 1) -> torch.Tensor:
    """Latents of two steps; without guidance, the negative is not asked for."""
    latent = latent_of(kind, *(size if size[0] else SIZES[kind]), count)
    noise = comfy.sample.prepare_noise(latent, 1)
    negative = conditioning(kind, UNWANTED)
    found = comfy.sample.sample(model, noise, 2, cfg, "euler", "simple", positive, negative, latent, seed=1)
    assert torch.isfinite(found).all()
    return found


def in_places(kind: str, *masks: torch.Tensor | RegionMask, **more: Any) -> Any:
    """The model with regions."""
    places = tuple(mask if isinstance(mask, RegionMask) else RegionMask(mask) for mask in masks)
    return scenes.with_more(model_of(kind), Scene(masks=places, **more))


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def same(a: torch.Tensor, b: torch.Tensor, what: str) -> None:
    assert off(a, b) <= ROUNDED, f"{what}: {off(a, b):.3g} of the largest value, {ROUNDED:g} expected"


def differ(a: torch.Tensor, b: torch.Tensor, what: str) -> None:
    assert off(a, b) > 3 * ROUNDED, f"{what}: no difference"


@functools.cache
def concept(kind: str, in_blocks: bool = True, seed: int = 0) -> Concept:
    """A LoRA on all layers of the blocks, or on all that are known."""
    with tempfile.TemporaryDirectory() as folder:
        found = imported(folder, kind, rex=lora_file(kind, SPELLINGS["kohya"], seed)).get("rex")
    if not in_blocks:
        return found
    family = family_of(found.architecture)
    return replace(found, factors={layer: f for layer, f in found.factors.items() if family.block_of(layer)})


def stack_of(kind: str, *weights: float, in_blocks: bool = True) -> ConceptStack:
    """The LoRA beside the layers: how much of it acts elsewhere, and in each region."""
    layers = sum(map(int, ARCHITECTURES[kind].split("-")[1].split("x")[0].split("+")))
    return ConceptStack([concept(kind, in_blocks)], torch.tensor(weights)[None, :, None, None].expand(1, -1, layers, 1))


def the_text_of_a_place_is_read_as_it_is_alone():
    for kind in CONFIGS:
        model, said = in_places(kind, ALL_OVER), conditioning(kind, OTHER, OWN)
        alone = painted(kind, model_of(kind), conditioning(kind, OWN))
        same(painted(kind, model, said), alone, kind)
        differ(painted(kind, model_of(kind), conditioning(kind, OTHER)), alone, kind)
        same(painted(kind, model, said, 1.5), painted(kind, model_of(kind), conditioning(kind, OWN), 1.5), f"{kind} with a negative")
        both = [painted(kind, each, given, count=2) for each, given in ((model, said), (model_of(kind), conditioning(kind, OWN)))]
        same(*both, f"{kind}, two pictures")
        behind = in_places(kind, torch.zeros(8, 8), ALL_OVER), conditioning(kind, OTHER, THIRD, OWN)
        same(painted(kind, *behind), alone, f"{kind}, behind a text that is nowhere")


def the_same_text_in_two_halves_is_that_text():
    for kind in CONFIGS:
        model, said = in_places(kind, LEFT, RIGHT), conditioning(kind, OTHER, OWN, OWN)
        alone = painted(kind, model_of(kind), conditioning(kind, OWN))
        joint_call.pieces_of = lambda lengths, held, *more: pieces_of(lengths, held, range(3))  # each looks at all, as it does alone
        try:
            same(painted(kind, model, said), alone, kind)
        finally:
            joint_call.pieces_of = pieces_of
        if kind == "Anima":  # in which no text looks at the picture
            same(painted(kind, model, said), alone, f"{kind}, as it is")
            continue
        differ(painted(kind, model, said), alone, f"{kind}, where each text looks at its half")


def the_places_that_are_kept_apart_do_not_see_each_other():
    for kind in CONFIGS:
        said = conditioning(kind, OTHER, OWN, THIRD)
        free = painted(kind, in_places(kind, LEFT, RIGHT), said)
        differ(painted(kind, in_places(kind, LEFT, RIGHT, apart=1.0), said), free, f"{kind}, apart")
        alone = conditioning(kind, OTHER, OWN)
        same(painted(kind, in_places(kind, LEFT, apart=1.0), alone), painted(kind, in_places(kind, LEFT), alone), f"{kind}, a single place")
        model = in_places(kind, LEFT, RIGHT, apart=1.0)
        left, beside = (painted(kind, model, conditioning(kind, OTHER, OWN, text), size=(8, 16))[..., :8] for text in (THIRD, UNWANTED))
        same(left, beside, f"{kind}, the left half beside another text")


def the_lora_of_a_place_is_the_lora():
    for kind in CONFIGS:
        merged = patches.merge(model_of(kind), concept(kind).factors)
        model = in_places(kind, ALL_OVER, stacks=(stack_of(kind, 0.0, 1.0),))
        said, alone = conditioning(kind, OTHER, OWN), conditioning(kind, OWN)
        same(painted(kind, model, said), painted(kind, merged, alone), kind)
        same(painted(kind, model, said, 1.5), painted(kind, merged, alone, 1.5), f"{kind} with a negative")
        differ(painted(kind, model, said), painted(kind, model_of(kind), alone), kind)
        spared = in_places(kind, ALL_OVER, negative=False, stacks=(replace(stack_of(kind, 0.0, 1.0), negative=False),))
        differ(painted(kind, spared, said, 1.5), painted(kind, merged, alone, 1.5), f"{kind}, the negative spared")


def the_lora_beside_the_layers_is_the_merged_one():
    for kind in CONFIGS:
        merged = patches.merge(model_of(kind), concept(kind, False).factors)
        beside = scenes.with_more(model_of(kind), Scene(stacks=(stack_of(kind, 1.0, in_blocks=False),)))
        for cfg in (1.0, 1.5):
            same(*(painted(kind, model, conditioning(kind, OWN), cfg) for model in (beside, merged)), kind)


def the_lora_lies_beside_a_quantised_base():
    for kind in ("Flux", "QwenImage", "SD3"):
        state = {key: weight.to(torch.float8_e4m3fn) for key, weight in model_of(kind).model.diffusion_model.state_dict().items()}
        models = []
        for dtypes in ((torch.float8_e4m3fn, torch.float32), (torch.float32, None)):  # of the weights, and what is computed in
            config = getattr(comfy.supported_models, kind)(dict(CONFIGS[kind]))
            config.set_inference_dtype(*dtypes)
            base = config.get_model({}, "", device=torch.device("cpu"))
            base.diffusion_model.load_state_dict({key: weight.to(dtypes[0]) for key, weight in state.items()})
            base.eval().requires_grad_(False)
            models.append(comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu")))
        scene = Scene(stacks=(stack_of(kind, 1.0),))
        found, wanted = (painted(kind, scenes.with_more(model, scene), conditioning(kind, OWN)) for model in models)
        same(found, wanted, f"{kind}: the same numbers in fp8 and in fp32")
        differ(found, painted(kind, models[0], conditioning(kind, OWN)), f"{kind}: without the LoRA")


def the_place_without_strength_is_not_there():
    for kind in CONFIGS:
        plain = painted(kind, model_of(kind), conditioning(kind, OTHER))
        equal(painted(kind, in_places(kind, RegionMask(ALL_OVER, 0.0)), conditioning(kind, OTHER, OWN)), plain)
        half = painted(kind, in_places(kind, RegionMask(ALL_OVER, 0.5)), conditioning(kind, OTHER, OWN))
        differ(half, plain, kind)
        soft = in_places(kind, RegionMask(LEFT, feather=0.2), RegionMask(RIGHT, priority=1))
        differ(painted(kind, soft, conditioning(kind, OTHER, OWN, THIRD)), plain, kind)


def the_text_of_a_place_reaches_no_other_text():
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        text = out[kind not in ("QwenImage", "SD3")] if isinstance(out, tuple) else out
        seen.append(text.clone())  # the next block writes over it

    for kind in CONFIGS.keys() - {"Anima"}:  # whose blocks change no text
        unet = model_of(kind).model.diffusion_model
        stacks = ("double_blocks", "layers", "transformer_blocks", "joint_blocks", "blocks")
        first = next(getattr(unet, name) for name in stacks if hasattr(unet, name))[0]
        length, more = (32 if kind == "ZImage" else filled(kind, text).shape[1] for text in (OTHER, OWN))
        seen.clear()
        handle = first.register_forward_hook(keep)
        try:
            for own in (OWN, OWN.flip(1)):
                painted(kind, in_places(kind, LEFT, RIGHT), conditioning(kind, OTHER, own, OWN))
        finally:
            handle.remove()
        one, other = seen[0], seen[2]
        equal(one[:, :length], other[:, :length])
        behind = length + more
        differ(one[:, length:behind], other[:, length:behind], kind)
        equal(one[:, behind : behind + more], other[:, behind : behind + more])


def the_passes_of_regions_are_those_of_their_texts():
    for kind in CONFIGS:
        model = in_places(kind, ALL_OVER, estimation=NoiseEstimation(alpha=0.0))
        alone = painted(kind, model_of(kind), conditioning(kind, OWN))
        same(painted(kind, model, conditioning(kind, OTHER, OWN)), alone, kind)


def the_attention_of_another_pack_is_asked_for_each_piece():
    asked: list[int] = []

    def stub(func, q, k, v, heads, mask=None, **how):
        assert mask is None or not mask.any(), "a kernel that takes no masks"
        asked.append(q.shape[2])
        return func(q, k, v, heads, mask=mask, **how)

    for kind in CONFIGS:
        model, said = in_places(kind, LEFT), conditioning(kind, OTHER, OWN)
        wanted = painted(kind, model, said)
        plain = model_of(kind).clone()
        plain.model_options["transformer_options"] = {"optimized_attention_override": stub}
        painted(kind, plain, conditioning(kind, OTHER))
        once = len(asked)
        asked.clear()
        other = model.clone()
        other.model_options["transformer_options"] = {**other.model_options["transformer_options"], "optimized_attention_override": stub}
        equal(painted(kind, other, said), wanted)
        assert len(asked) > once, "a piece was not asked of the other pack"
        asked.clear()


def the_mask_of_a_style_model_holds_for_its_text():
    height, width = 4, 5
    tokens = OTHER.shape[1] + height * width
    for value, check in ((0.0, same), (-2.0, differ)):
        mask = torch.zeros(1, tokens, tokens)
        mask[:, OTHER.shape[1] :, : OTHER.shape[1]] = value
        more = {"attention_mask": mask, "attention_mask_img_shape": (height, width)}
        model, said = in_places("Flux", LEFT), conditioning("Flux", OTHER, OWN, **more)
        check(painted("Flux", model, said), painted("Flux", model, conditioning("Flux", OTHER, OWN)), "Redux")


def the_picture_beside_that_of_flux_and_qwen_goes_with_regions():
    method = {"Krea2": {"reference_latents_method": "index"}}  # which reads one only where it is told how
    for kind in ("Flux", "QwenImage", *(("Flux2", "Krea2") if NEWEST else ())):
        more = {"reference_latents": [torch.ones_like(latent_of(kind, 6, 6))], **method.get(kind, {})}
        plain = painted(kind, model_of(kind), conditioning(kind, OTHER, **more))
        equal(painted(kind, in_places(kind, RegionMask(ALL_OVER, 0.0)), conditioning(kind, OTHER, OWN, **more)), plain)
        found, alone = (painted(kind, in_places(kind, LEFT), conditioning(kind, OTHER, OWN, **given)) for given in (more, {}))
        differ(found, alone, f"{kind}, with a picture beside it and without")
        ways = ("index_timestep_zero", "negative_index") if kind != "Flux" and NEWEST else ()
        for how in (more, *({**more, "reference_latents_method": way} for way in ways)):  # of the first, modulation has twice the rows
            merged = patches.merge(model_of(kind), concept(kind, False).factors)
            beside = scenes.with_more(model_of(kind), Scene(stacks=(stack_of(kind, 1.0, in_blocks=False),)))
            own = painted(kind, merged, conditioning(kind, OTHER, **how))
            same(painted(kind, beside, conditioning(kind, OTHER, **how)), own, f"{kind}, {how.get('reference_latents_method')}")
            differ(own, plain, kind)
            differ(painted(kind, in_places(kind, LEFT), conditioning(kind, OTHER, OWN, **how)), alone, kind)
    more = {"reference_latents": [torch.ones(1, 16, 6, 6)]}
    for kind in ("Lumina2", "ZImage") if NEWEST else ():
        told(kind, conditioning(kind, OTHER, OWN, **more), "given other pictures beside regions (ref_latents)")


def control_of(kind: str) -> Any:
    """The host's own ControlNet for a small model of a kind, with random weights and a picture."""
    options = {"operations": comfy.ops.manual_cast, "dtype": torch.float32, "device": torch.device("cpu")}
    torch.manual_seed(3)
    if kind == "Flux":
        net, hint = ControlNetFlux(**CONFIGS[kind], **options), torch.rand(1, 3, 64, 80)
        more = {"extra_conds": ["y", "guidance"]}
    else:  # it reads latents, here as they are
        net, hint = QwenImageControlNetModel(**CONFIGS[kind], **options), torch.randn(1, 16, 1, 8, 10)
        more = {"extra_conds": [], "compression_ratio": 1}
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    control = comfy.controlnet.ControlNet(net.requires_grad_(False), load_device=torch.device("cpu"), **more)
    return control.set_cond_hint(hint, 1.0, (0.0, 1.0))


def the_control_of_a_picture_goes_with_regions():
    paint = functools.partial(painted, size=(8, 10))  # the host's ControlNet of Flux takes no odd sides
    for kind in ("Flux", "QwenImage"):
        more = {"control": control_of(kind)}
        plain = paint(kind, model_of(kind), conditioning(kind, OTHER, **more))
        differ(plain, paint(kind, model_of(kind), conditioning(kind, OTHER)), f"{kind}, with a ControlNet and without")
        equal(paint(kind, in_places(kind, RegionMask(ALL_OVER, 0.0)), conditioning(kind, OTHER, OWN, **more)), plain)
        same(paint(kind, in_places(kind, ALL_OVER), conditioning(kind, OTHER, OTHER, **more)), plain, f"{kind}, its text all over")
        found, alone = (paint(kind, in_places(kind, LEFT), conditioning(kind, OTHER, OWN, **given)) for given in (more, {}))
        differ(found, alone, f"{kind}, a ControlNet beside a region")


def the_text_whose_tokens_are_masked_is_refused_beside_regions():
    said = conditioning("Lumina2", OTHER, OWN)
    said[0][1]["attention_mask"] = torch.tensor([[1, 1, 1, 0, 0]])
    told("Lumina2", said, "has tokens that are masked (attention_mask)")


def told(kind: str, said: list, why: str) -> None:
    """A text for a model with a region ends in one error that says so."""
    try:
        painted(kind, in_places(kind, LEFT), said)
    except ValueError as error:
        assert why in str(error), str(error)
    else:
        raise AssertionError(f"{kind} painted it")


def the_block_that_another_pack_skips_is_told():
    for kind, blocks in (("Flux", 4), ("QwenImage", 2), ("SD3", 2)):
        model = in_places(kind, LEFT)
        model.set_model_patch_replace(lambda args, more: args, "dit", "double_block", 1)
        try:
            painted(kind, model, conditioning(kind, OTHER, OWN))
        except ValueError as error:
            assert f"regions were not painted: 1 of {blocks} blocks of the model, such as transformer_blocks.1" in str(error), str(error)
        else:
            raise AssertionError("regions were painted without a block")


def the_layers_of_a_picture_are_not_taken_for_regions():
    latent, said = torch.zeros(1, 16, 3, 6, 6), conditioning("QwenImage", OTHER, OWN)
    noise = comfy.sample.prepare_noise(latent, 1)
    given = (noise, 2, 1.0, "euler", "simple", said, said, latent)
    try:
        comfy.sample.sample(in_places("QwenImage", LEFT), *given, seed=1)
    except ValueError as error:
        assert "the latent has 3 frames or layers" in str(error), str(error)
    else:
        raise AssertionError("it was painted")


def the_nodes_paint_two_concepts_in_their_places():
    boxes = '[{"text": "a <rex> in the snow", "box": [0, 0, 0.5, 1]}, {"text": "a <tom> in the snow", "box": [0.5, 0, 1, 1]}]'
    with tempfile.TemporaryDirectory() as folder:
        files = {name: lora_file("Flux", SPELLINGS["kohya"], seed) for seed, name in enumerate(("rex", "tom"))}
        given = {"model": model_of("Flux"), "clip": flux_clip(), "bank": imported(folder, "Flux", **files)}
        box = call("CIDMRegionBoxes", boxes=boxes)
        model, positive, negative, words = call("CIDMPaint", **given, prompt="snow", negative="fog", regions=box)
        assert "region 1: <rex> 1.00" in words and "region 2: <tom> 1.00" in words, words
        found = painted("Flux", model, positive)
        other, alike = call("CIDMPaintRegions", **given, text="snow", regions=box)[:2]
        equal(painted("Flux", other, alike), found)
        cut = call("CIDMAggregationSettings", region_texts="cut")
        shorter, their = call("CIDMPaint", **given, prompt="snow", negative="fog", regions=box, settings=cut)[:2]
        assert [text.shape[1] for text in their[0][0].plans[0].regions] == [64, 64] and their[0][0].shape[1] == 256
        differ(painted("Flux", shorter, their), found, "texts without padding")
        swapped = call("CIDMRegionBoxes", boxes=boxes.replace("rex", "kim").replace("tom", "rex").replace("kim", "tom"))
        differ(painted("Flux", *call("CIDMPaintRegions", **given, text="snow", regions=swapped)[:2]), found, "swapped")


def the_prompts_of_a_batch_are_painted_as_each_alone():
    prompts = (
        "a <rex:0.8> in the snow",
        "a <rex> and a <tom>",
        "fog " * 299 + "fog",
    )  # the last is longer than what others are filled up to
    with tempfile.TemporaryDirectory() as folder:
        files = {name: lora_file("Flux", SPELLINGS["kohya"], seed) for seed, name in enumerate(("rex", "tom"))}
        given = {"model": model_of("Flux"), "clip": flux_clip(), "bank": imported(folder, "Flux", **files)}
        model, positive, count, *_ = call("CIDMAggregateBatch", **given, texts="\n".join(prompts))
        assert count == 3
        found = painted("Flux", model, positive, count=3)
        for number, prompt in enumerate(prompts):
            merged = call("CIDMAggregate", **given, text=prompt)[0]
            said = call("CIDMEncodePrompt", clip=given["clip"], bank=given["bank"], text=prompt)[0]
            same(found[number : number + 1], painted("Flux", merged, said, count=3)[number : number + 1], prompt[:30])
