"""The host's guiders and samplers over models with concepts, regions and Infusion: see subjects.py. A part of inside_table.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from subjects import (
    NEGATIVE,
    PLAIN,
    SAID,
    SUBJECTS,
    TABLE,
    TOLERANCE,
    Scene,
    apart,
    attempt,
    call,
    exists,
    scene,
    verdict,
)  # fmt: skip

# isort: split

import comfy.samplers
import torch

from nodes import NODE_CLASS_MAPPINGS

OTHER = "a red castle on the beach"


class Asking(comfy.samplers.CFGGuider):
    """Guidance that asks for its two texts in an order of its own, together or one by one."""

    def __init__(self, model: Any, asked: tuple[tuple[str, ...], ...]):
        super().__init__(model)
        self.asked = asked

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        found = {}
        for names in self.asked:
            conds = [self.conds[name] for name in names]
            answers = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
            found |= dict(zip(names, answers, strict=True))
        return found["negative"] + self.cfg * (found["positive"] - found["negative"])


def asking(*asked: tuple[str, ...]) -> Callable:
    def guider(s: Scene, model: Any, positive: list, base: Any) -> Any:
        made = Asking(model, asked)
        made.set_conds(positive, s.negative)
        made.set_cfg(4.0)
        return made

    return guider


def dual(style: str, same: bool = False) -> Callable:
    def guider(s: Scene, model: Any, positive: list, base: Any) -> Any:
        second = positive if same else s.text(OTHER)
        weights = {"cfg_conds": 3.0, "cfg_cond2_negative": 4.0, "style": style}
        return call("DualCFGGuider", model=model, cond1=positive, cond2=second, negative=s.negative, **weights)

    return guider


def perp_neg(neg_scale: float, empty: str) -> Callable:
    def guider(s: Scene, model: Any, positive: list, base: Any) -> Any:
        texts = {"positive": positive, "negative": s.text(OTHER), "empty_conditioning": s.text(empty)}
        return call("PerpNegGuider", model=model, **texts, cfg=4.0, neg_scale=neg_scale)

    return guider


def cfg(scale: float) -> Callable:
    return lambda s, model, positive, base: call("CFGGuider", model=model, positive=positive, negative=s.negative, cfg=scale)


def dual_model(plain_negative: bool) -> Callable:
    def guider(s: Scene, model: Any, positive: list, base: Any) -> Any:
        other = base if plain_negative else model
        return call("DualModelGuider", model=model, model_negative=other, positive=positive, negative=s.negative, cfg=4.0)

    return guider


@dataclass(frozen=True)
class Guider:
    """A guider; ``same_as`` is another that gives the same picture by what they compute, whatever the model."""

    node: str
    label: str
    make: Callable
    same_as: Callable | None = None

    @property
    def title(self) -> str:
        return f"{self.node} ({self.label})" if self.node and self.label else self.node or self.label


GUIDERS = [
    Guider("CFGGuider", "", cfg(4.0)),
    Guider("BasicGuider", "", lambda s, model, positive, base: call("BasicGuider", model=model, conditioning=positive), cfg(1.0)),
    Guider("DualCFGGuider", "regular", dual("regular")),
    Guider("DualCFGGuider", "nested", dual("nested")),
    Guider("DualCFGGuider", "regular, one text twice", dual("regular", same=True), cfg(4.0)),
    Guider("DualCFGGuider", "nested, one text twice", dual("nested", same=True), cfg(4.0)),
    Guider("PerpNegGuider", "", perp_neg(1.0, "")),
    Guider("PerpNegGuider", "neg_scale 0", perp_neg(0.0, NEGATIVE), cfg(4.0)),
    Guider("DualModelGuider", "one model twice", dual_model(False), cfg(4.0)),
    Guider("DualModelGuider", "the negative on the plain model", dual_model(True)),
    Guider("", "a guider that asks the negative first", asking(("negative", "positive")), cfg(4.0)),
    Guider("", "a guider that asks the negative alone, then the positive", asking(("negative",), ("positive",)), cfg(4.0)),
    Guider("", "a guider that asks the positive alone, then the negative", asking(("positive",), ("negative",)), cfg(4.0)),
    Guider("", "a guider that asks twice for the positive", asking(("positive", "positive"), ("negative",)), cfg(4.0)),
]
GUIDERS = [guider for guider in GUIDERS if not guider.node or exists(guider.node)]


def painted(guider: Callable, model: Any, positive: list, base: Any) -> torch.Tensor:
    s = scene()
    return s.guided(guider(s, model, positive, base))


def over(*names: str) -> None:
    """Every guider over subjects: what the host paints by itself, and the same picture as the guider that computes the same."""
    s, found = scene(), {}
    for name in names:
        subject = SUBJECTS[name]
        host = s.with_lora(s.model) if subject.lora else s.model
        said, ours, lively = s.text(SAID.get(name, PLAIN)), subject.make(s, s.model), subject.lively(s, s.model)
        for guider in GUIDERS:
            title = guider.title
            because = (guider.node or "guider",)
            want = painted(guider.make, host, said, s.model)
            if guider.same_as:
                twin = painted(guider.same_as, host, said, s.model)
                assert apart(want, twin) <= TOLERANCE, f"the host alone: {title} is not what it should be the same as"
            told = verdict(attempt(lambda: painted(guider.make, *ours, s.model), because), want)  # noqa: B023 -- called at once
            found[title, name] = told
            if guider.same_as and told == "equal":
                got, twin = (attempt(lambda: painted(make, *lively, s.model), because) for make in (guider.make, guider.same_as))  # noqa: B023
                found[title, f"{name}, lively"] = twin if isinstance(twin, str) else verdict(got, twin, "the guider that computes the same")
    columns = {SUBJECTS[name].column for name in names}
    assert len(columns) == 1
    TABLE.check(found, columns.pop())


def the_guiders_guide_merged_concepts():
    over("merged concepts")


def the_guiders_guide_concepts_beside_the_layers():
    over("routed concepts", "a style")


def the_guiders_guide_regions():
    over("regions")


def the_guiders_guide_region_noise():
    over("region noise")


def the_guiders_guide_infusion():
    over("Infusion")


SAMPLERS = {
    "SamplerEulerAncestral", "SamplerEulerAncestralCFGPP", "SamplerLMS", "SamplerDPMPP_3M_SDE", "SamplerDPMPP_2M_SDE", "SamplerDPMPP_SDE",
    "SamplerDPMPP_2S_Ancestral", "SamplerDPMAdaptative", "SamplerER_SDE", "SamplerSASolver", "SamplerSEEDS2", "SamplerLCM",
    "SamplerLCMUpscale", "SamplerEulerCFGpp", "KSamplerSelect",
}  # fmt: skip
VIDEO = {"SamplerARVideo": "a frame at a time", "VOIDSampler": "video"}


def the_table_has_every_guider_and_sampler_of_the_host():
    giving = {kind: {n for n, node in NODE_CLASS_MAPPINGS.items() if kind in map(str, node.RETURN_TYPES)} for kind in ("GUIDER", "SAMPLER")}
    foreign = {n for n in giving["GUIDER"] if n.startswith("LTXV")}  # of a video model with sound
    missing = giving["GUIDER"] - foreign - {guider.node for guider in GUIDERS}
    assert not missing, f"guiders that the table lacks: {sorted(missing)}"
    missing = giving["SAMPLER"] - SAMPLERS - set(VIDEO)
    assert not missing, f"samplers that the table lacks: {sorted(missing)}"


def the_samplers_of_the_host_paint_the_same():
    """Each sampler node with its defaults, three steps (DPM adaptive takes its own), over regions and Infusion."""
    s = scene()
    for name in ("regions", "Infusion"):
        subject, found = SUBJECTS[name], {}
        host = s.with_lora(s.model) if subject.lora else s.model
        ours, said = subject.make(s, s.model), s.text(PLAIN)
        for node in sorted(filter(exists, SAMPLERS)):
            steps = 3
            given = {"model": s.model, "use_pece": False, "simple_order_2": False} if node == "SamplerSASolver" else {}
            given |= {"rtol": 0.5, "atol": 0.5} if node == "SamplerDPMAdaptative" else {}
            kept = {"steps": steps}

            def sampled(model, positive, node=node, given=given, kept=kept):
                return s.guided(cfg(4.0)(s, model, positive, None), call(node, **given), **kept)

            found[node, name] = verdict(attempt(lambda: sampled(*ours), (node,)), sampled(host, said))  # noqa: B023
        TABLE.check(found, subject.column)


def the_sampler_nodes_are_one():
    """KSampler, KSamplerAdvanced, SamplerCustom and SamplerCustomAdvanced paint one picture."""
    s = scene()
    sigmas = call("BasicScheduler", model=s.model, scheduler="normal", steps=2, denoise=1.0)
    latent, sampler = {"samples": torch.zeros(1, 16, 16, 16)}, call("KSamplerSelect", sampler_name="euler")
    for name in ("regions", "Infusion"):
        model, positive = SUBJECTS[name].lively(s, s.model)
        want, found = s.paint(model, positive, steps=2), {}
        texts = {"model": model, "positive": positive, "negative": s.negative, "cfg": 4.0, "latent_image": latent, "noise_seed": 1}
        custom = call("SamplerCustom", **texts, add_noise=True, sampler=sampler, sigmas=sigmas)[0]["samples"]
        how = {"steps": 2, "sampler_name": "euler", "scheduler": "normal", "start_at_step": 0, "end_at_step": 2}
        advanced = call("KSamplerAdvanced", **texts, **how, add_noise="enable", return_with_leftover_noise="disable")["samples"]
        found["SamplerCustom", name] = verdict(custom, want)
        found["KSamplerAdvanced", name] = verdict(advanced, want)
        found["SamplerCustomAdvanced", name] = verdict(s.guided(cfg(4.0)(s, model, positive, None), steps=2), want)
        TABLE.check(found, SUBJECTS[name].column)
