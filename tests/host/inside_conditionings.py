"""The host's nodes on CONDITIONING and CLIP, over texts with learned words: see subjects.py. A part of inside_table.py."""

import base64
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from subjects import (
    BANK,
    FELT,
    PLAIN,
    SAID,
    SUBJECTS,
    TABLE,
    WORDED,
    Scene,
    apart,
    attempt,
    call,
    exists,
    scene,
    verdict,
    write_concept,
)  # fmt: skip

# isort: split

import comfy.sd
import numpy as np
import torch
from inside_painting import control_net
from pack.cidm_ops.models.sd import DOODLE
from safetensors import safe_open

from nodes import NODE_CLASS_MAPPINGS

OTHER, LONG = "a red castle on the beach", "a red castle on the beach " * 15
AREA = {"x": 0, "y": 0, "strength": 0.8}
PIXELS = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
HALF = torch.zeros(1, 16, 16)
HALF[:, :, :8] = 1


def style_model() -> Any:
    """A style model of random weights that says as many tokens as a text has."""
    layer = torch.nn.Linear(1, DOODLE.width, bias=False)
    torch.nn.init.normal_(layer.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return comfy.sd.StyleModel(lambda states: layer(states.mean((1, 2), keepdim=True).expand(-1, 77, 1)).detach())


@functools.cache
def seen() -> Any:
    return call("CLIPVisionEncode", clip_vision=scene().vision, image=PIXELS, crop="center")


@functools.cache
def control() -> Any:
    return control_net()


def hooks() -> Any:
    return call("CreateHookLora", lora_name="cat.safetensors", strength_model=0.5, strength_clip=0.0)


def other() -> list:
    return scene().text(OTHER)


def long() -> list:
    return scene().text(LONG)


def other_half() -> list:
    return call("ConditioningSetMask", conditioning=other(), mask=HALF, strength=1.0, set_cond_area="default")


def negative() -> list:
    return scene().negative


@dataclass(frozen=True)
class Text:
    """A node on texts: ``given`` are its inputs, functions are called for theirs, and the input ``of`` is the text. With ``tensor``, what
    comes out holds other numbers or other texts too: in regions it is the global prompt that changes, and is seen where no region is.
    """

    node: str
    given: Mapping[str, Any] = field(default_factory=dict)
    of: str = "conditioning"
    label: str = ""
    tensor: bool = False
    steps: int = 1

    @property
    def title(self) -> str:
        return f"{self.node} ({self.label})" if self.label else self.node

    def act(self, text: list) -> tuple[list, list]:
        """The positive and the negative."""
        given = {key: value() if callable(value) else value for key, value in self.given.items()}
        done = call(self.node, **given, **{self.of: text})
        return done[:2] if isinstance(done, tuple) else (done, negative())


@dataclass(frozen=True)
class Early(Text):
    """The text in the first half of the sampling, another one in the second."""

    def act(self, text: list) -> tuple[list, list]:
        first = call(self.node, conditioning=text, start=0.0, end=0.5)
        return first + call(self.node, conditioning=other(), start=0.5, end=1.0), negative()


def average(of: str, rest: str, weight: float) -> Text:
    given = {rest: other, "conditioning_to_strength": weight}
    return Text("ConditioningAverage", given, of, f"{of.removeprefix('conditioning_')}, {weight:g}", tensor=True)


TO, FROM = "conditioning_to", "conditioning_from"
STRENGTH = {"strength": 0.8, "set_cond_area": "default"}
PAIR = {"negative": negative}
CONTROL = {"control_net": control, "image": lambda: PIXELS, "strength": 1.0}
RANGE = {"start_percent": 0.0, "end_percent": 1.0}
STYLE = {"style_model": style_model, "clip_vision_output": seen, "strength": 1.0, "strength_type": "multiply"}
MASKED = {**STRENGTH, "mask": HALF}
BOTH = {"negative": negative, "negative_NEW": negative, "positive": other}

TEXTS = [
    Text("ConditioningZeroOut", tensor=True),
    Text("ConditioningMultiply", {"multiplier": 1.2}, tensor=True),
    average(TO, FROM, 0.0),
    average(TO, FROM, 0.5),
    average(TO, FROM, 1.0),
    average(FROM, TO, 0.5),
    Text("ConditioningConcat", {FROM: other}, TO, "to", tensor=True),
    Text("ConditioningConcat", {FROM: long}, TO, "to, a long one", tensor=True),
    Text("ConditioningConcat", {TO: other}, FROM, "from", tensor=True),
    Text("StyleModelApply", STYLE, tensor=True),
    Text("ConditioningCombine", {"conditioning_2": other}, "conditioning_1", tensor=True),
    Text("ConditioningSetArea", {"width": 64, "height": 128, **AREA}),
    Text("ConditioningSetAreaPercentage", {"width": 0.5, "height": 1.0, "x": 0.5, "y": 0.0, "strength": 0.8}),
    Text("ConditioningSetAreaStrength", {"strength": 0.5}),
    Text("ConditioningSetMask", MASKED),
    Text("ConditioningSetMask", {**MASKED, "set_cond_area": "mask bounds"}, label="to the mask's bounds"),
    Early("ConditioningSetTimestepRange", tensor=True, steps=2),
    Text("unCLIPConditioning", {"clip_vision_output": seen, "strength": 1.0, "noise_augmentation": 0.0}),
    Text("ControlNetApply", CONTROL),
    Text("ControlNetApplyAdvanced", {**PAIR, **CONTROL, **RANGE}, "positive"),
    Text("ControlNetApplySD3", {**PAIR, **CONTROL, **RANGE, "vae": lambda: scene().vae}, "positive"),
    Text("InpaintModelConditioning", {**PAIR, "vae": lambda: scene().vae, "pixels": PIXELS, "mask": HALF, "noise_mask": True}, "positive"),
    Text("InstructPixToPixConditioning", {**PAIR, "vae": lambda: scene().vae, "pixels": PIXELS}, "positive"),
    Text("ConditioningSetProperties", {**MASKED, "hooks": hooks}, "cond_NEW", "mask and LoRA hook"),
    Text("PairConditioningSetProperties", {**STRENGTH, "negative_NEW": negative, "hooks": hooks}, "positive_NEW", "LoRA hook"),
    Text("ConditioningSetPropertiesAndCombine", {**MASKED, "cond": other}, "cond_NEW", tensor=True),
    Text("PairConditioningSetPropertiesAndCombine", {**MASKED, **BOTH}, "positive_NEW", tensor=True),
    Text("ConditioningSetDefaultCombine", {"cond": other_half}, "cond_DEFAULT", tensor=True),
    Text(
        "PairConditioningSetDefaultCombine",
        {"positive": other_half, "negative": negative, "negative_DEFAULT": negative},
        "positive_DEFAULT",
        tensor=True,
    ),
    Text(
        "PairConditioningCombine",
        {"negative_A": negative, "positive_B": other, "negative_B": negative},
        "positive_A",
        tensor=True,
    ),
]
TEXTS = [text for text in TEXTS if exists(text.node)]
COMPUTING = ("ConditioningZeroOut", "ConditioningMultiply", "ConditioningAverage", "ConditioningConcat", "StyleModelApply")
ON_NUMBERS = [text for text in TEXTS if text.node in COMPUTING]

OTHER_MODELS = {  # by the file of the host that they are in
    "nodes_ace", "nodes_audio", "nodes_bernini", "nodes_cond", "nodes_cosmos", "nodes_edit_model", "nodes_flux", "nodes_hidream_o1",
    "nodes_hunyuan", "nodes_kandinsky5", "nodes_lt", "nodes_minimax_h3", "nodes_pid", "nodes_scail", "nodes_sdupscale",
    "nodes_stable_cascade", "nodes_trellis2", "nodes_void", "nodes_wan", "nodes_wandancer", "nodes_wanmove",
}  # fmt: skip
LEFT_OUT = {
    "GLIGENTextBoxApply": "needs GLIGEN's weights",
    "ControlNetInpaintingAliMamaApply": "for another model's ControlNet",
    "ConditioningSetAreaPercentageVideo": "three dimensions",
    "ResolutionBucket": "sorts data for training",
}


def the_table_has_every_conditioning_node_of_the_host():
    missing = []
    for name, node in NODE_CLASS_MAPPINGS.items():
        taken = [str(entry[0]) for part in ("required", "optional") for entry in node.INPUT_TYPES().get(part, {}).values()]
        fits = "CONDITIONING" in taken and "CONDITIONING" in map(str, node.RETURN_TYPES)
        known = node.__module__.rpartition("/")[2] in OTHER_MODELS or name in {*LEFT_OUT, *(text.node for text in TEXTS)}
        missing += [name] if fits and not known else []
    assert not missing, f"nodes that the table lacks: {missing}"


def acted(s: Scene, text: Text, model: Any, positive: list) -> torch.Tensor:
    return s.paint(model, *text.act(positive), steps=text.steps)


def nowhere(s: Scene, model: Any) -> tuple[Any, list]:
    """Regions of which the only one is empty: the global prompt, with its concept, is everywhere."""
    box = {"left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0, "strength": 1.0, "priority": 0, "feather": 0.0}
    given = {"regions": call("CIDMRegion", text="a <cat>", mask=torch.zeros(1, 16, 16), **box), "text": WORDED}
    return call("CIDMPaintRegions", model=model, clip=s.clip, bank=s.bank, **given, preset="fast", mode="exact", strength=1.0)[:2]


@functools.cache
def plainly(number: int, lora: bool, said: str) -> torch.Tensor:
    s = scene()
    return acted(s, TEXTS[number], s.with_lora(s.model) if lora else s.model, s.text(said))


def on_texts_of(name: str) -> None:
    """Every node on the positive text of a subject: what the host paints with the same node on a text without learned words."""
    s, subject, found = scene(), SUBJECTS[name], {}
    model, positive = subject.make(s, s.model)
    everywhere = nowhere(s, s.model) if subject.column == "regions" else (model, positive)
    for number, text in enumerate(TEXTS):
        mine = everywhere if text.tensor else (model, positive)
        got = attempt(lambda: acted(s, text, *mine), (text.node,))  # noqa: B023 -- called at once
        found[text.title, name] = verdict(got, plainly(number, subject.lora, SAID.get(name, PLAIN)))
    TABLE.check(found, subject.column)


def the_conditioning_nodes_act_on_the_text_of_merged_concepts():
    on_texts_of("merged concepts")


def the_conditioning_nodes_act_on_the_text_of_routed_concepts():
    on_texts_of("routed concepts")


def the_conditioning_nodes_act_on_the_text_of_a_style():
    on_texts_of("a style")


def the_conditioning_nodes_act_on_the_global_text_of_regions():
    on_texts_of("regions")


def the_conditioning_nodes_act_on_the_text_of_infusion():
    on_texts_of("Infusion")


def by_layer(s: Scene) -> list[list]:
    """The text "a <dog> in the snow" as each of the seven layers reads it, as seven plain CONDITIONINGs."""
    with safe_open(BANK / "dog.safetensors", "pt") as file:
        header, packed = (json.loads(file.metadata()[key]) for key in ("cidm", "cidm.tokens"))
    table = torch.from_numpy(np.frombuffer(base64.b64decode(packed["clip_l"]), "<f4").copy()).view(header["token_shapes"]["clip_l"])
    reads = header.get("token_layers") or list(range(7))
    for layer in range(7):
        write_concept(f"layer{layer}", "dog", table[:, reads[layer] : reads[layer] + 1].expand(-1, 7, -1).contiguous())
    bank, found = call("CIDMOpenBank", name="table"), []
    for layer in range(7):
        (states, _), = call("CIDMEncodePrompt", clip=s.clip, bank=bank, text=f"a <layer{layer}> in the snow")[0]  # fmt: skip
        found.append([[states, {}]])
    return found


def read_by_layer(s: Scene, model: Any, texts: list[list]) -> torch.Tensor:
    """What the host paints where each cross-attention of the positive rows reads a text of its own."""
    order: list = []
    dry = model.clone()
    dry.set_model_attn2_patch(lambda n, context, value, extra: order.append(extra["block"]) or (n, context, value))
    s.paint(dry, texts[0])
    places = list(dict.fromkeys((*block,) for block in order))
    assert len(places) == len(texts), places

    def own(n, context, value, extra):
        text = texts[places.index((*extra["block"],))][0][0]
        each = len(context) // len(extra["cond_or_uncond"])
        context = context.clone()
        for i, half in enumerate(extra["cond_or_uncond"]):
            if half == 0:
                context[i * each : (i + 1) * each] = text.repeat(1, context.shape[1] // text.shape[1], 1).to(context)
        return n, context, context

    patched = model.clone()
    patched.set_model_attn2_patch(own)
    return s.paint(patched, texts[0])


def the_layers_own_texts_are_changed_one_by_one():
    """On texts whose layers differ: what a node does to the text, it does to the text of every layer."""
    s, found = scene(), {}
    texts = by_layer(s)
    core = call("LoraLoaderModelOnly", model=s.model, lora_name="dog.safetensors", strength_model=1.0)
    model, positive = s.aggregated(s.model, "a <dog> in the snow")
    routed = s.aggregated(s.model, "a <dog> in the snow", path="routed", reach="everywhere")[0]
    same = read_by_layer(s, core, [s.text(PLAIN)] * 7)
    assert apart(same, s.paint(core, s.text(PLAIN))) <= 1e-5, "the host alone"
    assert apart(s.paint(model, positive), read_by_layer(s, core, texts)) <= 1e-4, "without a node"
    zero = s.paint(core, call("ConditioningZeroOut", conditioning=s.text(PLAIN)))
    castle = s.paint(core, other())
    unchanged = s.paint(model, positive)
    exact = {"ConditioningZeroOut": zero, "ConditioningAverage (to, 0)": castle, "ConditioningAverage (to, 1)": unchanged}
    for text in ON_NUMBERS:
        want = read_by_layer(s, core, [text.act(one)[0] for one in texts])
        known = exact.get(text.title)
        assert known is None or apart(want, known) <= 1e-4, f"the host alone: {text.title}"
        assert text.title == "ConditioningAverage (to, 1)" or apart(want, unchanged) > FELT, f"the host alone: {text.title} changes nothing"
        for path, patched in (("merged", model), ("routed", routed)):
            got = attempt(lambda: acted(s, text, patched, positive), (text.node,))  # noqa: B023 -- called at once
            found[text.title, f"{path}, layers differ"] = verdict(got, want)
    TABLE.check(found, "concepts")


def the_negative_may_be_the_positive_zeroed():
    """The common idiom: ConditioningZeroOut of the positive as the negative."""
    s, found = scene(), {}
    for name in ("merged concepts", "routed concepts", "regions", "Infusion"):
        subject = SUBJECTS[name]
        host, text = s.with_lora(s.model) if subject.lora else s.model, s.text(PLAIN)
        want = s.paint(host, text, call("ConditioningZeroOut", conditioning=text))
        model, positive = subject.make(s, s.model)
        got = attempt(lambda: s.paint(model, positive, call("ConditioningZeroOut", conditioning=positive)), ("ConditioningZeroOut",))  # noqa: B023
        found["ConditioningZeroOut (of the positive, as the negative)", name] = verdict(got, want)
        TABLE.note("ConditioningZeroOut (of the positive, as the negative)", subject.column, name, verdict(got, want))
    wrong = [f"{name}: {said}" for (_, name), said in found.items() if said.startswith("FAILS")]
    assert not wrong, "\n".join(wrong)


def the_infusion_goes_with_its_text():
    """With residuals that act: no weight of a text is none of its residuals, and all of its weight is all of them."""
    s, found = scene(), {}
    model, positive = s.infused(s.model, "a <charm> in the snow")
    assert apart(s.paint(model, positive), s.paint(s.model, s.text(PLAIN))) > FELT
    for weight, want in ((1.0, s.paint(model, positive)), (0.0, s.paint(s.model, other()))):
        text = average(TO, FROM, weight)
        got = attempt(lambda: acted(s, text, model, positive), (text.node,))  # noqa: B023 -- called at once
        found[text.title, "Infusion, residuals act"] = verdict(got, want)
    TABLE.check(found, "Infusion")


def the_area_of_a_text_sees_the_regions_in_it():
    """SetArea cuts the pass to a part of the picture: what is there is painted by the regions that are there."""
    s, found = scene(), {}
    halves = (0, 64)
    for x, said in zip(halves, ("a dog in the snow", OTHER), strict=True):
        area = {"width": 64, "height": 128, "x": x, "y": 0, "strength": 1.0}
        rest = {**area, "x": 64 - x}
        beside = call("ConditioningSetArea", conditioning=s.text("in the snow"), **rest)
        model, positive = s.painted_in_regions(s.model, "in the snow", "a dog in the snow", OTHER)
        got = attempt(lambda: s.paint(model, call("ConditioningSetArea", conditioning=positive, **area) + beside), ("area",))  # noqa: B023
        want = s.paint(s.model, call("ConditioningSetArea", conditioning=s.text(said), **area) + beside)
        where = f"regions, {'left' if x == 0 else 'right'} half"
        if isinstance(got, torch.Tensor):  # the text beside is not the regions'
            side = slice(0, 8) if x == 0 else slice(8, 16)
            got, want = got[..., side], want[..., side]
        found["ConditioningSetArea", where] = verdict(got, want)
    TABLE.check(found, "regions")


def the_text_encoders_nodes_act_on_learned_words():
    """CLIP nodes before Encode Prompt with Concepts."""
    s, found = scene(), {}
    core, (model, _) = s.with_lora(s.model), SUBJECTS["merged concepts"].make(s, s.model)
    for title, clip in (
        ("CLIPSetLastLayer", call("CLIPSetLastLayer", clip=s.clip, stop_at_clip_layer=-2)),
        ("CLIPAttentionMultiply", call("CLIPAttentionMultiply", clip=s.clip, q=1.1, k=1.0, v=0.9, out=1.1)),
        ("SetClipHooks", call("SetClipHooks", clip=s.clip, apply_to_conds=True, schedule_clip=False, hooks=hooks())),
    ):
        want = s.paint(core, s.text(PLAIN, clip))
        assert title == "SetClipHooks" or apart(want, s.paint(core, s.text(PLAIN))) > FELT, f"the host alone: {title}"
        got = attempt(lambda: s.paint(model, s.worded(clip=clip)), (title, "hook"))  # noqa: B023 -- called at once
        found[title, "merged concepts"] = verdict(got, want)
    TABLE.check(found, "concepts")
