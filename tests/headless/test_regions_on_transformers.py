"""Regions in one pass on transformers of diffusers: what a text and a LoRA do to a whole picture they do in their place."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_transformers import MODELS, TEXT
from torch import nn

import cidm_ops
from cidm_ops.__main__ import main
from cidm_ops.adapters import attach_parts
from cidm_ops.bank.bank import Bank
from cidm_ops.bank.concept import Concept
from cidm_ops.concept_text import ConceptText, plain
from cidm_ops.engines.diffusers import load_any
from cidm_ops.engines.several_texts import read_several
from cidm_ops.lowrank import LowRank
from cidm_ops.method.pieces import pieces_of
from cidm_ops.method.regions import RegionMask, box_mask
from cidm_ops.models import clip
from cidm_ops.painting import joint_call
from cidm_ops.painting.compose import AggregationConfig, ConceptMix
from cidm_ops.painting.composition import Composition, RegionPrompt, compose_regions
from cidm_ops.painting.config import PRESETS, NoiseEstimation
from cidm_ops.painting.joint_paint import begin_joint, predict_joint, read_region
from cidm_ops.painting.paint import Photo, SamplingConfig, paint, paint_latents, unit_noise
from cidm_ops.painting.sampling import sample
from cidm_ops.painting.scene import ConceptStack, Scene
from cidm_ops.row_plan import RowPlan
from cidm_ops.tokens import Text

ALL_OVER, LEFT, RIGHT = torch.ones(8, 8), box_mask(0, 0, 0.5, 1), box_mask(0.5, 0, 1, 1)
# Z-Image fills up an image to a multiple of 32 tokens with some whose places are absolute: only without those is a text the same elsewhere.
SIZES = {name: (8, 16) if name == "zimage" else (6, 10) for name in MODELS}
ROUNDED = 1e-5  # of the largest value, fp32


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def base(name, request) -> Any:
    return load_any(request.getfixturevalue(f"tiny_{name}"))


def states_of(length: int, seed: int) -> torch.Tensor:
    """A random text ``[1, N, C]``."""
    return torch.randn(1, length, TEXT, generator=torch.Generator().manual_seed(seed))


OTHER, OWN, THIRD, UNWANTED = (states_of(length, seed) for seed, length in enumerate((5, 11, 40, 11)))


def front_of(base: Any) -> int:
    """How many states of other encoders stand in front of a text's own."""
    return clip.CHUNK if base.family.diffusers.reader.beside else 0


def text_of(base: Any, states: torch.Tensor, *regions: torch.Tensor) -> Text:
    """A text of the model, with texts of regions if there are any."""
    _, pooled = base.read("a dog")
    states, *regions = (given.repeat(1, 1, len(base.family.diffusers.reader.layers) or 1) for given in (states, *regions))
    of_regions = tuple(ConceptText.of(region, [RowPlan()]) for region in regions)
    return Text(states[:, None], (0,) * len(base.cross_attention), pooled, (RowPlan(regions=of_regions),) if regions else ())


def painted(base: Any, text: Text, scene: Scene | None = None, guidance: float = 1.0, count: int = 1, **more: Any) -> torch.Tensor:
    """Latents of two steps."""
    height, width = SIZES[base.family.name]
    noise = unit_noise(base.family, 1, count, 8 * height, 8 * width)
    predict = None if scene is None else predict_joint(base, begin_joint(base, scene))
    unwanted = text_of(base, UNWANTED).expand(count)
    found = sample(base, text.expand(count), unwanted, noise, steps=2, guidance=guidance, predict=predict, **more)
    assert torch.isfinite(found).all()
    return found


def places(*masks: torch.Tensor | RegionMask, **more: Any) -> Scene:
    return Scene(masks=tuple(mask if isinstance(mask, RegionMask) else RegionMask(mask) for mask in masks), **more)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert off(a, b) <= ROUNDED


def differ(a: torch.Tensor, b: torch.Tensor) -> None:
    assert off(a, b) > ROUNDED


def concept_of(base: Any, name: str = "rex", seed: int = 0, in_blocks: bool = True, **more: Any) -> Concept:
    """A LoRA on all layers of the blocks, or on all that are known."""
    draw = torch.Generator().manual_seed(seed)
    factors = {
        layer: LowRank(0.3 * torch.randn(at.rows, 2, generator=draw), 0.3 * torch.randn(2, at.columns, generator=draw))
        for layer, at in base.layers.items()
        if base.family.block_of(layer) or not in_blocks
    }
    return Concept(name=name, class_word="dog", architecture=base.architecture, factors=factors, fingerprint=base.fingerprint, **more)


def stack_of(base: Any, *weights: float) -> ConceptStack:
    """The LoRA beside the layers: how much of it acts elsewhere, and in each region."""
    every = torch.tensor(weights)[None, :, None, None].expand(1, -1, len(base.cross_attention), 1)
    return ConceptStack([concept_of(base)], every)


def test_the_text_of_a_place_is_read_as_it_is_alone(base):
    said, alone = text_of(base, OTHER, OWN), painted(base, text_of(base, OWN))
    same(painted(base, said, places(ALL_OVER)), alone)
    differ(painted(base, text_of(base, OTHER)), alone)
    same(painted(base, said, places(ALL_OVER), 1.5), painted(base, text_of(base, OWN), guidance=1.5))
    same(painted(base, said, places(ALL_OVER), count=2), painted(base, text_of(base, OWN), count=2))
    same(painted(base, text_of(base, OTHER, THIRD, OWN), places(torch.zeros(8, 8), ALL_OVER)), alone)
    same(painted(base, text_of(base, THIRD, OTHER, OWN), places(torch.zeros(8, 8), ALL_OVER)), alone)


def test_the_same_text_in_two_halves_is_that_text(base, monkeypatch):
    said, alone = text_of(base, OTHER, OWN, OWN), painted(base, text_of(base, OWN))
    if base.family.name != "anima":  # whose image looks at all of itself in an attention of its own
        differ(painted(base, said, places(LEFT, RIGHT)), alone)
    monkeypatch.setattr(joint_call, "pieces_of", lambda lengths, held, *more: pieces_of(lengths, held, range(3)))
    same(painted(base, said, places(LEFT, RIGHT)), alone)  # each looks at all, as it does alone


def test_places_that_are_kept_apart_do_not_see_each_other(base):
    columns = SIZES[base.family.name][1] // 2  # of tokens
    middle = columns // 2
    left = torch.arange(columns)[None] < middle
    halves = [RegionMask(left.float()), RegionMask((~left).float())]
    for apart, check in ((1.0, same), (0.0, differ)):
        one, other = (
            painted(base, text_of(base, OTHER, OWN, beside), Scene(masks=tuple(halves), apart=apart))[..., : base.family.patch * middle]
            for beside in (THIRD, UNWANTED)
        )
        check(one, other)


def test_the_lora_of_a_place_is_the_lora(base):
    scene = places(ALL_OVER, stacks=(stack_of(base, 0.0, 1.0),))
    said, alone, factors = text_of(base, OTHER, OWN), text_of(base, OWN), concept_of(base).factors
    for guidance in (1.0, 1.5):
        with attach_parts(base.modules, base.layers, factors):
            wanted = painted(base, alone, guidance=guidance)
        same(painted(base, said, scene, guidance), wanted)
        differ(painted(base, alone, guidance=guidance), wanted)
    spared = replace(scene, negative=False, stacks=(replace(scene.stacks[0], negative=False),))
    differ(painted(base, said, spared, 1.5), wanted)


def test_a_lora_that_changes_more_than_blocks_acts_as_it_does_merged_and_a_place_has_it_without_that(base, tmp_path):
    rex = concept_of(base, in_blocks=False, triggers=("rex dog",))
    bank, noise, config = Bank(tmp_path).add(rex), unit_noise(base.family, 1, 2, 64, 128), SamplingConfig(2, 1.5)
    found, told = paint(base, bank, "a <rex>", noise, config)
    assert not told
    before = {layer: base.modules[at.module].weight.data.clone() for layer, at in base.layers.items()}
    try:
        for layer, f in rex.factors.items():
            base.modules[base.layers[layer].module].weight.data += f.delta()
        merged = paint(base, Bank(tmp_path / "none"), "a rex dog", noise, config)[0]
    finally:
        for layer, weight in before.items():
            base.modules[base.layers[layer].module].weight.data = weight
    torch.testing.assert_close(found, merged, atol=1e-4, rtol=1e-3)
    assert [*rex.factors] != [layer for layer in rex.factors if base.family.block_of(layer)]
    _, told = paint(base, bank, "snow", noise, config, [("a <rex>", RegionMask(LEFT))])
    assert len(told) == 1 and "acts in a region without" in told[0]


def test_a_lora_that_changes_how_a_text_is_read_is_refused(tiny_anima, tmp_path):
    base: Any = load_any(tiny_anima)
    rex = concept_of(base, triggers=("rex dog",))
    rex.factors["llm_adapter.out_proj"] = LowRank(torch.ones(TEXT, 1), torch.ones(1, TEXT))
    bank, noise = Bank(tmp_path).add(rex), unit_noise(base.family, 1, 1, 64, 64)
    for prompt, more in (("a <rex>", []), ("snow", [("a <rex>", RegionMask(LEFT))])):
        with pytest.raises(ValueError, match="<rex> changes how Anima reads a text, which this command does not do: paint it in ComfyUI"):
            paint(base, bank, prompt, noise, SamplingConfig(2, 1.5), more)
    assert paint(base, bank, "a <rex:0>", noise, SamplingConfig(1, 1.5))[0].shape == (1, 3, 64, 64)


def test_a_place_without_strength_is_not_there(base):
    plain = painted(base, text_of(base, OTHER))
    assert torch.equal(painted(base, text_of(base, OTHER, OWN), places(RegionMask(ALL_OVER, 0.0))), plain)
    differ(painted(base, text_of(base, OTHER, OWN), places(RegionMask(ALL_OVER, 0.5))), plain)
    soft = places(RegionMask(LEFT, feather=0.2), RegionMask(RIGHT, priority=1))
    differ(painted(base, text_of(base, OTHER, OWN, THIRD), soft), plain)


def test_the_passes_of_regions_are_those_of_their_texts(base):
    alone = painted(base, text_of(base, OWN))
    same(painted(base, text_of(base, OTHER, OWN), places(ALL_OVER, estimation=NoiseEstimation(alpha=0.0))), alone)


def test_the_text_of_a_place_reaches_no_other_text_and_no_other_place_before_pictures_tell_each_other(base):
    height, width = (side // 2 for side in SIZES[base.family.name])
    first = base.blocks[base.family.meeting(base.blocks)[0]]
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        text, image = out if isinstance(out, tuple) else (out[:, : -height * width], out[:, -height * width :])
        seen.extend((text.clone(), image.unflatten(1, (height, width)).clone()))

    handle = first.register_forward_hook(keep)
    try:
        for own in (OWN, UNWANTED):
            seen_before = len(seen)
            painted(base, text_of(base, OTHER, own, OWN), places(LEFT, RIGHT, stacks=(stack_of(base, 0.0, 1.0, 0.0),)))
            del seen[seen_before + 2 :]
    finally:
        handle.remove()
    (text, image), (other_text, other_image) = seen[:2], seen[2:]
    start, end = (32, 64) if base.family.name == "zimage" else (OTHER.shape[1], OTHER.shape[1] + OWN.shape[1])
    if text.shape[1]:  # of Anima the blocks look at a text that stays as it is
        assert torch.equal(text[:, :start], other_text[:, :start]) and torch.equal(text[:, end:], other_text[:, end:])
        differ(text[:, start:end], other_text[:, start:end])
    same(image[:, :, -(width // 2) :], other_image[:, :, -(width // 2) :])  # of an odd width the middle is both's
    differ(image[:, :, : width // 2], other_image[:, :, : width // 2])


def test_nothing_is_left_on_the_model_and_a_plain_call_is_as_before(base):
    before = painted(base, text_of(base, OTHER))
    painted(base, text_of(base, OTHER, OWN), places(LEFT, stacks=(stack_of(base, 0.0, 1.0),)))
    assert torch.equal(painted(base, text_of(base, OTHER)), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.unet.modules())
    assert "patchify_and_embed" not in vars(base.unet)


def test_a_block_that_is_answered_otherwise_is_told(base):
    block = base.blocks[base.family.meeting(base.blocks)[-1]]
    layer = next(part for part in block.children() if hasattr(part, "set_processor"))
    own = layer.processor

    def skip(attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        return (hidden_states, encoder_hidden_states) if base.family.name in ("qwenimage", "sd3") else hidden_states

    layer.set_processor(skip)
    try:
        with pytest.raises(ValueError, match="regions were not painted: 1 of . blocks.*PyTorch's own attention has to answer"):
            painted(base, text_of(base, OTHER, OWN), places(LEFT))
    finally:
        layer.set_processor(own)


def test_a_model_whose_texts_stand_nobody_knows_where_is_refused():
    with (
        pytest.raises(ValueError, match="regions are not painted on Identity here"),
        read_several(nn.Identity(), [], [1, 2], lambda q, k, v, mask, attend: attend(q, k, v, mask)),
    ):
        pass


def named(base: Any, folder: Any) -> Bank:
    """A bank with two concepts that are called by words."""
    bank = Bank(folder)
    for seed, (concept, words) in enumerate({"rex": "rex dog", "tom": "tom cat"}.items()):
        bank = bank.add(concept_of(base, concept, seed, triggers=(words,)))
    return bank


def test_a_bank_paints_two_concepts_in_their_places(base, tmp_path):
    bank, config = named(base, tmp_path), SamplingConfig(2, 1.5, "fog")
    noise = unit_noise(base.family, 1, 2, 64, 128)
    boxes = [("a <rex> in the snow", RegionMask(LEFT)), ("a <tom>", RegionMask(RIGHT))]
    found, told = paint(base, bank, "snow", noise, config, boxes)
    assert found.shape == (2, 3, 64, 128) and not told
    swapped = paint(base, bank, "snow", noise, config, [(boxes[1][0], boxes[0][1]), (boxes[0][0], boxes[1][1])])[0]
    differ(found, swapped)
    for more in (
        replace(config, estimation=PRESETS["paper"]),
        replace(config, aggregation=AggregationConfig(negative=False)),
        replace(config, aggregation=AggregationConfig(inside=1.5)),
    ):
        differ(paint(base, bank, "snow", noise, more, boxes)[0], found)
    alone = paint(base, bank, "snow", noise[1:], config, boxes)[0]
    torch.testing.assert_close(alone, found[1:], atol=1e-4, rtol=1e-4)


def test_more_guidance_in_a_place_that_is_everything_is_more_guidance(base, tmp_path):
    bank, noise = named(base, tmp_path), unit_noise(base.family, 1, 1, 64, 128)
    one = [("a <rex>", RegionMask(ALL_OVER))]
    inside = SamplingConfig(2, 1.5, aggregation=AggregationConfig(inside=2.0))
    same(paint(base, bank, "snow", noise, inside, one)[0], paint(base, bank, "snow", noise, SamplingConfig(2, 3.0), one)[0])


def test_places_are_found_by_the_words_of_concepts(base, tmp_path):
    bank, noise = named(base, tmp_path), unit_noise(base.family, 1, 1, 64, 128)
    texts = ("a <rex> in the snow", "a <tom>")

    def found(until: float) -> torch.Tensor:
        sought = [(text, RegionMask(torch.zeros(1, 1), sought=until)) for text in texts]
        return paint(base, bank, "snow", noise, SamplingConfig(4, 1.5), sought)[0]

    plain = paint(base, bank, "snow", noise, SamplingConfig(4, 1.5))[0]
    torch.testing.assert_close(found(1.0), plain, atol=1e-4, rtol=1e-4)
    differ(found(0.3), plain)


def test_a_text_that_is_filled_up_loses_most_of_that_where_it_is_asked(base):
    mixed = ConceptMix("a rex dog in the snow")
    padded, cut = (read_region(base, mixed, False, padding) for padding in (True, False))
    least = base.family.diffusers.reader.least
    front = front_of(base)
    assert padded.shape[1] >= front + least and cut.shape[1] == (
        front + (128 if base.family.name == "flux2" else 64) if least else padded.shape[1]
    )
    assert torch.equal(plain(cut), plain(padded)[:, : cut.shape[1]])


def test_a_place_that_is_to_be_found_by_words_that_are_not_there_is_refused(base):
    layers = len(base.cross_attention)
    mixed = ConceptMix("a bird", [concept_of(base, triggers=("rex dog",))], {"rex": 1.0}, weights=torch.ones(layers, 1))
    place = RegionPrompt(RegionMask(torch.zeros(1, 1), sought=0.3), mixed)
    composition = Composition(ConceptMix("snow", weights=torch.zeros(layers, 0)), [place])
    with pytest.raises(ValueError, match="no trigger or class word of that stands in the text"):
        paint_latents(base, composition, unit_noise(base.family, 1, 1, 64, 128), SamplingConfig(1))


def test_the_words_of_a_concept_are_where_its_letters_are(base):
    """The tokens of these models are letters; of a space before a word and one behind it, either is left where the word is not."""
    text, word = "a rex dog on the grass", "rex dog"
    read = read_region(base, ConceptMix(text, [concept_of(base, triggers=(word,))], {"rex": 1.0}), True)
    ids, letters = base.tokenize(text)[0].tolist(), base.tokenize(word)[0].tolist()
    front = front_of(base)
    assert front + len(ids) == read.shape[1]
    at = (read.plans[0].token_masks["rex"].nonzero()[:, 0] - front).tolist()
    assert len(at) == len(word) + 1 and at == list(range(at[0], at[-1] + 1))
    found = [ids[i] for i in at]
    assert "".join(map(chr, found[1:])) in "".join(map(chr, letters)) or "".join(map(chr, found[:-1])) in "".join(map(chr, letters))


def test_the_rest_is_refused_by_name(base, tmp_path):
    bank, noise = named(base, tmp_path), unit_noise(base.family, 1, 1, 64, 128)
    boxes, title = [("a <rex>", RegionMask(LEFT))], base.family.title
    for how, why in (
        (AggregationConfig(start=0.5), f"a late start does not work on {title} yet"),
        (AggregationConfig(overlap="strongest"), f"overlap 'strongest' does not work on {title} yet"),
        (AggregationConfig(scope="where it stands"), "finds the place of the concepts"),
        (AggregationConfig(mode="soft"), "mode 'soft'"),
    ):
        with pytest.raises(ValueError, match=why):
            paint(base, bank, "snow", noise, SamplingConfig(1, aggregation=how), boxes)
    over = Photo(torch.zeros(1, 16, 8, 16), torch.ones(8, 16))
    with pytest.raises(ValueError, match=f"painting over a photo does not work on {title}"):
        paint_latents(base, compose_regions(base, bank, "snow", boxes), noise, SamplingConfig(1), photo=over)
    with pytest.raises(ValueError, match="'where it stands' does not work on"):
        paint(base, bank, "a <rex>", noise, SamplingConfig(1, aggregation=AggregationConfig(scope="where it stands")))


def test_the_command_line_and_a_notebook_paint_regions(base, tmp_path, capsys):
    bank = named(base, tmp_path / "bank")
    make = ["generate", "--base", str(base.folder), "--bank", str(bank.folder), "--size", "64", "--device", "cpu", "--steps", "2"]
    regions = ["--region", "0,0,0.5,1: a <rex> in the snow", "--region", "0.5,0,1,1: a <tom>"]
    boxes = tmp_path / "boxes.json"
    drawn = [{"text": "a <rex> in the snow", "box": [0, 0, 0.5, 1]}, {"text": "a <tom>", "box": [0.5, 0, 1, 1]}]
    boxes.write_text(json.dumps(drawn))
    asked = {"plain": [], "words": regions, "file": ["--regions", str(boxes)], "passes": [*regions, "--preset", "paper"]}
    found = {}
    for folder, more in asked.items():
        assert main([*make, "--prompt", "snow", "--out", str(tmp_path / folder), *more]) == 0, capsys.readouterr().err
        (file,) = (tmp_path / folder).glob("*.png")
        found[folder] = np.asarray(Image.open(file)).astype(int)
    assert (found["words"] == found["file"]).all()
    assert (found["words"] != found["plain"]).any() and (found["words"] != found["passes"]).any()
    placed = {(0, 0, 0.5, 1): "a <rex> in the snow", (0.5, 0, 1, 1): "a <tom>"}
    config = SamplingConfig(2, base.family.objective.cfg)
    (image,) = cidm_ops.generate(cidm_ops.load(base.folder, "cpu"), bank, "snow", placed, config, size=64)
    assert abs(np.asarray(image).astype(int) - found["words"]).max() <= 1
