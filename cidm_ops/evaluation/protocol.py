"""The protocol of the paper (CIDM 4.1) on a bank: every concept in every prompt, pictures kept on disk, scored, and reported.

What is in the folder is not made again: pictures (one PNG each), embeddings of a tower, and nothing else takes time.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone, TransformerBackbone
from ..bank.bank import Bank
from ..bank.files import write_atomically
from ..bank.formats import packed, write_picture
from ..bank.picture_file import in_colours, open_picture
from ..doodle.concepts import CONCEPTS, examples
from ..engines.towers import Tower
from ..measure.report import to_pixels
from ..measure.scores import embed_all
from ..models.family import Family
from ..models.sd import DOODLE
from ..painting.compose import AggregationConfig
from ..painting.paint import SamplingConfig, paint, unit_noise
from ..text_file import read_json, read_text
from ..training.folder import references
from .doodle import HELD_OUT, PLACES, pictured
from .doodle import scene as doodle_scene

TOKEN = re.compile(r"<TOK>|\{\}")
OnPart = Callable[[int, int], None]
Picture = Path | Tensor  # a sample on disk, or [3, H, W] in [-1, 1]


@dataclass(frozen=True)
class SampleSettings:
    """The settings say how samples are painted. A folder of samples belongs to one of these, and to one base model."""

    size: int
    steps: int = 50
    guidance: float = 7.5
    negative: str = ""
    mode: str = "exact"
    strength: float = 1.0
    seed: int = 0

    @property
    def config(self) -> SamplingConfig:
        """The sampling that these settings ask for, of a picture of their size from a seed that counts on from theirs."""
        return SamplingConfig(self.steps, self.guidance, self.negative, AggregationConfig(mode=self.mode, strength=self.strength))


@dataclass(frozen=True)
class EvaluationTask:
    """A concept, the prompts for it with ``<TOK>`` where it stands, and its reference pictures ``[3, H, W]`` in [-1, 1]."""

    name: str
    class_word: str
    prompts: Sequence[str]
    references: Sequence[Tensor]

    def prompt(self, template: str) -> str:
        return TOKEN.sub(f"<{self.name}>", template)

    def caption(self, template: str) -> str:
        """The prompt in plain words, for text alignment."""
        return TOKEN.sub(self.class_word, template)


def usual_guidance(family: Family) -> float:
    """The guidance that images are scored with: the paper's on the models that it has, else what suits the family."""
    return 7.5 if family.layerwise and family.size != DOODLE.size else family.objective.cfg


def read_prompts(file: Path) -> list[str]:
    """One prompt a line, ``<TOK>`` or ``{}`` where the concept stands; empty lines are skipped. Raises ``ValueError`` for one without."""
    lines = [" ".join(line.split()) for line in read_text(file).splitlines() if line.strip()]
    if wrong := [line for line in lines if not TOKEN.search(line)]:
        raise ValueError(f"{file}: {wrong[0]!r} does not say where the concept stands: write <TOK> there")
    if not lines:
        raise ValueError(f"{file}: no prompts in it: expected one a line")
    return lines


def doodle_prompts(name: str) -> list[str]:
    """The four places in which Doodle's concepts are scored."""
    known = name if name in CONCEPTS else next(iter(CONCEPTS))
    return [doodle_scene(known, "<TOK>", place) for place in PLACES]


def references_in(folder: Path, size: int = 512) -> tuple[list[Tensor], list[str]]:
    """Pictures of a folder, and what a person should know about what else is in it. Raises ``FileNotFoundError`` where there are none,
    ``ValueError`` for one that cannot be read.
    """
    pictures, remarks = references(folder, size) if folder.is_dir() else ([], [])
    if not pictures:
        left_out = "".join(f"; {remark}" for remark in remarks)
        raise FileNotFoundError(f"{folder}: no reference pictures in it: expected a folder for each concept, of its name{left_out}")
    return pictures, remarks


def doodle_references(name: str) -> list[Tensor]:
    """Renderings that no training sees."""
    if name not in CONCEPTS:
        raise ValueError(f"Doodle has no references of <{name}>: give a folder of pictures")
    return list(pictured(examples(CONCEPTS[name], HELD_OUT, seed=1)))


def claim(folder: Path, backbone: Backbone | TransformerBackbone, sampling: SampleSettings, bank: Bank, names: Sequence[str]) -> None:
    """Write down what the samples of this folder are. Raises ``ValueError`` where it holds samples of anything else."""
    file = folder / "settings.json"
    now: dict[str, Any] = {"base": [backbone.architecture, backbone.fingerprint], **vars(sampling)}
    concepts = {name: hashlib.sha256(bank.file(name).read_bytes()).hexdigest()[:16] for name in names}
    before = read_json(file) if file.exists() else {**now, "concepts": {}}
    if not isinstance(before, dict) or not before.keys() >= {*now, "concepts"}:
        raise ValueError(f"{file} does not say what the samples beside it are: give another --out, or remove that folder")
    for key, value in now.items():
        if before[key] != value:
            raise ValueError(f"{folder} holds samples with {key} {before[key]}, now it is {value}: give another --out")
    for name, digest in concepts.items():
        if before["concepts"].get(name, digest) != digest:
            raise ValueError(f"{folder} holds samples of another <{name}> than the bank has now: give another --out or remove them")
    write_atomically(json.dumps({**now, "concepts": before["concepts"] | concepts}, indent=1).encode(), file)


def sample_file(folder: Path, name: str, template: str, seed: int) -> Path:
    """Return where the picture of a prompt and a seed is: readable, and the same wherever the prompt stands in its file."""
    words = re.sub(r"[^a-z0-9]+", "-", template.lower()).strip("-")[:48]
    return folder / "samples" / name / f"{words}-{hashlib.sha256(template.encode()).hexdigest()[:6]}" / f"{seed}.png"


def files_of(folder: Path, task: EvaluationTask, seeds: Sequence[int]) -> list[tuple[Path, str]]:
    """Every picture of a concept and its prompt."""
    return [(sample_file(folder, task.name, template, seed), template) for template in task.prompts for seed in seeds]


def missing(
    folder: Path, tasks: Sequence[EvaluationTask], seeds: Sequence[int], batch: int = 4
) -> list[tuple[EvaluationTask, str, list[int]]]:
    """Lists the pictures that are not there yet: at most ``batch`` seeds of one prompt at a time."""
    todo = []
    for task in tasks:
        for template in task.prompts:
            absent = [s for s in seeds if not sample_file(folder, task.name, template, s).exists()]
            todo += [(task, template, absent[i : i + batch]) for i in range(0, len(absent), batch)]
    return todo


def paint_missing(
    folder: Path,
    backbone: Backbone | TransformerBackbone,
    bank: Bank,
    todo: Sequence[tuple[EvaluationTask, str, list[int]]],
    sampling: SampleSettings,
    on_picture: OnPart = lambda done, count: None,
) -> int:
    """Paints what ``missing`` listed, each picture from its own seed; returns how many that were."""
    count, done = sum(len(some) for _, _, some in todo), 0
    for task, template, some in todo:
        noise = torch.cat([unit_noise(backbone.family, seed, 1, sampling.size, sampling.size) for seed in some])
        pictures, _ = paint(backbone, bank, task.prompt(template), noise, sampling.config)
        for seed, pixels in zip(some, to_pixels(pictures), strict=True):
            write_picture(Image.fromarray(pixels), sample_file(folder, task.name, template, seed))
            done += 1
            on_picture(done, count)
    return count


def read_sample(file: Path) -> Tensor:
    """``[3, H, W]`` in [-1, 1]. Raises ``ValueError`` naming a file that is damaged."""
    try:
        pixels = np.asarray(in_colours(open_picture(file)))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{file} cannot be read ({error}): remove it, it will be painted again") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


class Samples(Sequence[Tensor]):
    """Pictures on disk, read when they are looked at: thousands do not fit into memory."""

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: Any) -> Any:
        return Samples(self.files[i]) if isinstance(i, slice) else read_sample(self.files[i])


@dataclass(frozen=True)
class Embeddings:
    """Unit embeddings of a concept: ``pictures [N, E]`` and ``references [M, E]``; in the space of words ``shown [N, E]``,
    ``captions [N, E]`` (empty without a text side) and ``meant [M, E]``, what the references show.
    """

    pictures: Tensor
    references: Tensor
    shown: Tensor
    captions: Tensor
    meant: Tensor


def embed_task(
    folder: Path, tower: Tower, task: EvaluationTask, seeds: Sequence[int], on_picture: OnPart = lambda done, count: None
) -> Embeddings:
    """Embed what was not embedded by this tower before, and keep that beside the samples."""
    samples: list[tuple[str, Picture]] = [(f"{file.parent.name}/{file.stem}", file) for file, _ in files_of(folder, task, seeds)]
    references: list[tuple[str, Picture]] = [(f"reference/{_digest(picture)}", picture) for picture in task.references]
    views = {"": tower} | ({"shown/": tower.shown} if tower.reads is not tower.see else {})
    last = list(views)[-1]
    kept = folder / "features" / f"{task.name}-{tower.fingerprint}.safetensors"
    known = _kept(kept)
    new = [(key, picture) for key, picture in samples + references if last + key not in known]
    if new:
        known |= _embed(views, new, on_picture)
        write_atomically(packed({k: v.contiguous() for k, v in known.items()}, {"tower": tower.fingerprint}), kept)
    captions = tower.captions([task.caption(template) for template in task.prompts])
    texts = torch.zeros(0) if captions is None else F.normalize(captions, dim=-1).repeat_interleave(len(seeds), 0)
    seen, meant = (torch.stack([known[view + k] for k, _ in references]) for view in ("", last))
    whole, shown = (torch.stack([known[view + k] for k, _ in samples]) for view in ("", last))
    return Embeddings(whole, seen, shown, texts, meant)


def _digest(picture: Tensor) -> str:
    return hashlib.sha256(to_pixels(picture[None]).tobytes()).hexdigest()[:16]


def _embed(views: Mapping[str, Any], new: Sequence[tuple[str, Picture]], on_picture: OnPart) -> dict[str, Tensor]:
    """The embeddings ``[E]`` of pictures in every view of a tower, 32 at a time, by the view's prefix and the picture's key."""
    found: dict[str, Tensor] = {}
    for start in range(0, len(new), 32):
        part = new[start : start + 32]
        pictures = [read_sample(picture) if isinstance(picture, Path) else picture for _, picture in part]
        for view, see in views.items():
            found |= {view + key: e for (key, _), e in zip(part, embed_all(see, pictures), strict=True)}
        on_picture(start + len(part), len(new))
    return found


def _kept(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):  # not there, or damaged: what can be made again is
        return {}
