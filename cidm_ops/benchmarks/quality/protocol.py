"""The protocol: learn in order and keep no old data, score each concept right after its task and after the last one.

Everything goes into a folder: a bank per training and seed, and the scores of every concept at every point, one small file each. What is
there is not made again, so a benchmark that was stopped goes on.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...bank.bank import Bank
from ...bank.concept import Concept
from ...bank.files import write_atomically
from ...bank.formats import write_picture
from ...engines.parts import PartsJudge, fingerprint_of
from ...evaluation.parts import identity_by_parts, is_flat, judged, look_of
from ...measure.report import to_pixels
from ...measure.scores import alignments, caption_cosines, clip_scores, embed_all
from ...painting.compose import AggregationConfig, ConceptMix
from ...painting.config import BY_KIND, PLACE
from ...painting.paint import SamplingConfig, paint, unit_noise
from ...printable import one_line
from ...text_file import read_json
from ...training.method import Task
from ...training.methods import configure, method_named, method_of
from ...training.record import flat_settings
from ...training.task import learn_into
from .methods import TRAININGS, Method, Training, mixture
from .painter import paint_mixtures
from .suite import BenchmarkTask, Suite

MODELESS = ("drawn", "plain")  # need nothing learned
ONCE = (*MODELESS, "composite")  # scored after the last task only
log = logging.getLogger("cidm.bench")
# "ia" and, with a text side, "ta", one for every picture, prompts in turn; with a judge "parts", of flat pictures alone
Scores = dict[str, list[float]]


class Asked(NamedTuple):
    """One score of a benchmark: every concept by the method of that ``name``, at a strength, right after its own task or after the last."""

    name: str
    seed: int
    strength: float = 1.0
    first: bool = False


@dataclass(frozen=True)
class Bench:
    """A suite in a folder, ``samples`` pictures of each prompt, ``batch`` of them painted together; ``bf16`` paints in autocast, and a
    ``judge`` reads identity by parts.
    """

    folder: Path
    suite: Suite
    samples: int = 1
    batch: int = 20
    bf16: bool = False
    trainings: Mapping[str, Training] = field(default_factory=lambda: TRAININGS)
    judge: PartsJudge | None = None

    def claim(self) -> None:
        """Write down what the folder is of. Raises ``ValueError`` where it holds anything else."""
        suite, file = self.suite, self.folder / "settings.json"
        now: dict[str, Any] = {
            "suite": suite.name,
            "base": [suite.backbone.architecture, suite.backbone.fingerprint],
            "tower": suite.tower.fingerprint,
            "tasks": [lesson.name for lesson in suite.lessons],
            "recipe": flat_settings(suite.recipe, method_of(suite.recipe)),
            "infusion": flat_settings(suite.infusion, method_of(suite.infusion)),
            "sampling": vars(suite.sampling),
            "samples": self.samples,
            "bf16": self.bf16,
            "judge": fingerprint_of(self.judge) if self.judge else None,
        } | {f"training {name}": training.settings for name, training in self.trainings.items()}
        now = json.loads(json.dumps(now))
        before = {"judge": None} | read_json(file) if file.exists() else now
        for key in ("recipe", "infusion"):  # settings that came after the folder was begun had their defaults
            if isinstance(known := before.get(key), dict) and known.get("method") == now[key]["method"]:
                before[key] = first_settings(known["method"]) | known
        for key, value in now.items():
            if before.get(key, value) != value:
                raise ValueError(f"{self.folder} holds results with {key} {before[key]}, now it is {value}: give another --folder")
        write_atomically(json.dumps(now | before | now, indent=1).encode(), file)  # in the same order each time

    def learn(self, training: str, seed: int) -> Mapping[str, Concept]:
        """Learn the concepts of a sequence in order where they are not there yet, and return them by name."""
        folder, way = self.folder / "banks" / f"{training}-{seed}", self.trainings[training]
        bank, suite = Bank(folder), self.suite
        for lesson in suite.lessons:
            config = suite.config_of(lesson, way.config(suite, lesson.kind), seed)
            method = way.method_on(suite.backbone.family, folder)
            beside = self.beside(training, lesson)
            task = Task(name=lesson.name, class_word=lesson.class_word, config=config, method=method, beside=beside)
            new = lesson.name not in bank.names
            bank, _, losses, warnings = learn_into(bank, suite.backbone, lesson.data(way.infusion), task)
            if new:
                for warning in warnings:
                    log.warning("%s", one_line(warning))
                log.info("%s, seed %d: learned %s, loss %.4f", training, seed, lesson.name, sum(losses[-50:]) / len(losses[-50:]))
        return {lesson.name: bank.get(lesson.name) for lesson in suite.lessons}

    def beside(self, training: str, lesson: BenchmarkTask) -> Sequence[str]:
        """Return the names of concepts that a lesson is not kept apart from: none in the protocol of the paper."""
        return ()

    def scores(self, name: str, method: Method, seed: int, strength: float = 1.0, first: bool = False) -> dict[str, Scores]:
        """Score each concept after the last task, or with ``first`` right after its own."""
        names = [lesson.name for lesson in self.suite.lessons]
        folder = self.folder / "scores" / f"{name}-{seed}"
        files = {n: folder / f"{n}-{'first' if first else 'last'}-{strength:g}.json" for n in names}
        if any(not file.exists() for file in files.values()):
            learned = self.learn(method.training, seed) if method.merge not in MODELESS else {}
            for i, lesson in enumerate(self.suite.lessons):
                if not files[lesson.name].exists():
                    known = {n: learned[n] for n in (names[: i + 1] if first else names)} if learned else {}
                    pictures = self.paint(method, known, lesson, seed, strength)
                    found = self.score(lesson, pictures)
                    if strength == 1 and not first:
                        self.keep(pictures[:: self.samples], folder / f"{lesson.name}.png")
                    write_atomically(json.dumps(found).encode(), files[lesson.name])
            log.info("%s, seed %d, %s, strength %g: scored", name, seed, "first" if first else "last", strength)
        return {n: read_json(file) for n, file in files.items()}

    @torch.no_grad()
    def paint(self, method: Method, learned: Mapping[str, Concept], lesson: BenchmarkTask, seed: int, strength: float) -> Tensor:
        """Paint every prompt of a lesson, ``samples`` times: ``[prompts * samples, 3, H, W]`` in [-1, 1]."""
        suite, backbone, how = self.suite, self.suite.backbone, self.suite.sampling
        numbers = range(len(lesson.prompts) * self.samples)
        noise = unit_noise(suite.backbone.family, how.seed + 1000 * seed, len(numbers), how.size, how.size)
        prompts = [lesson.prompts[i // self.samples] for i in numbers]
        if method.merge == "drawn":
            if lesson.drawn is None:
                raise ValueError(f"the suite {suite.name} has no drawings of what is asked for: leave that method out")
            return torch.stack([lesson.drawn(prompt, 100 * seed + i) for i, prompt in enumerate(prompts)])
        done = []
        with torch.autocast(backbone.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            if method.as_a_user:
                bank = Bank(self.folder / "banks" / f"{method.training}-{seed}")
                for i in numbers:
                    reach = BY_KIND if lesson.kind == "style" and method.reach == PLACE else method.reach  # a style has no place
                    weighed = AggregationConfig(strength=strength, scope=reach, start=method.start)
                    config = SamplingConfig(how.steps, how.guidance, how.negative, weighed)
                    done.append(paint(backbone, bank, lesson.prompt(prompts[i]), noise[i : i + 1], config)[0])
            else:
                mixed = [self.mixed(method, learned, lesson, prompt, strength) for prompt in prompts]
                for i in range(0, len(numbers), self.batch):
                    part = slice(i, i + self.batch)
                    done.append(paint_mixtures(backbone, mixed[part], noise[part], how, method.merge == "composite", method.reach))
        return torch.cat(done).float()

    def mixed(self, method: Method, learned: Mapping[str, Concept], lesson: BenchmarkTask, prompt: str, strength: float) -> ConceptMix:
        if method.merge == "plain":
            return ConceptMix(lesson.caption(prompt), weights=torch.zeros(len(self.suite.backbone.cross_attention), 0))
        return mixture(method.merge, self.suite.backbone, learned, lesson.name, lesson.prompt(prompt), strength)

    def score(self, lesson: BenchmarkTask, pictures: Tensor) -> Scores:
        """Measure IA with the references, TA with the prompts in plain words, and with a judge identity by parts."""
        tower = self.suite.tower
        ia = alignments(embed_all(tower, list(pictures)), embed_all(tower, lesson.references))
        words = tower.captions([lesson.caption(prompt) for prompt in lesson.prompts])
        found = {"ia": ia.tolist()}
        if words is not None:
            texts = F.normalize(words, dim=-1).repeat_interleave(self.samples, 0)
            found["ta"] = clip_scores(caption_cosines(embed_all(tower.shown, list(pictures)), texts)).tolist()
        if self.judge and judged(lesson.name):
            flat = [i for i in range(len(pictures)) if is_flat(lesson.prompts[i // self.samples])]
            if flat:
                found["parts"] = identity_by_parts(self.judge, look_of(lesson.name), pictures[flat]).nanmean(1).tolist()
        return {key: [round(v, 5) for v in values] for key, values in found.items()}

    def keep(self, pictures: Tensor, file: Path) -> None:
        """One picture of every prompt, side by side."""
        strip = to_pixels(pictures)
        write_picture(Image.fromarray(strip.transpose(1, 0, 2, 3).reshape(strip.shape[1], -1, 3)), file)


def first_settings(method: str) -> dict[str, Any]:
    """Every setting of a method at its default, as JSON has it."""
    return json.loads(json.dumps(flat_settings(configure(method), method_named(method))))


def asked(methods: Mapping[str, Method], seeds: Sequence[int], curves: Sequence[int]) -> Iterator[Asked]:
    """Gives all that a benchmark scores, in its order."""
    for seed in seeds:
        for name, method in methods.items():
            yield Asked(name, seed)
            if method.merge not in ONCE:
                yield Asked(name, seed, first=True)
            for strength in method.strengths if seed in curves else ():
                yield Asked(name, seed, strength)


def run_all(bench: Bench, methods: Mapping[str, Method], seeds: Sequence[int], curves: Sequence[int] = (0,)) -> None:
    """Learn and score all that is not there yet; ``curves`` are the seeds whose curves over the strength are drawn."""
    bench.claim()
    for one in asked(methods, seeds, curves):
        bench.scores(one.name, methods[one.name], one.seed, one.strength, one.first)
