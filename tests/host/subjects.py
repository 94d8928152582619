"""What the table of the host's nodes is made of: the nodes as the executor calls them, models with concepts, and verdicts.

A *subject* is a model with concepts, regions or Infusion, set up so that the host alone can paint the very same picture: the words of
its concept are those of "dog" in every layer, and its factors are a file that the host's own LoRA loader reads. What a node of the host
does to that model it must do to the subject, chained before it or after it, or the node is refused by an error that names it.
A *lively* subject is the same with words and places that differ, where only the order of chaining and silence can be judged.
"""

import asyncio
import base64
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inside import PACK, RESULTS, pack

# isort: split

import comfy.model_management
import folder_paths
import safetensors.torch
import server
import torch
from comfy_api.latest import io
from safetensors import safe_open

from nodes import NODE_CLASS_MAPPINGS, init_builtin_extra_nodes

HOME = Path(tempfile.mkdtemp())
for name in ("output", "temp", "input", "user"):
    getattr(folder_paths, f"set_{name}_directory")(str(HOME / name))
    (HOME / name).mkdir()
BANK = HOME / "banks" / "table"
folder_paths.add_model_folder_path("cidm_banks", str(BANK.parent), is_default=True)
folder_paths.add_model_folder_path("loras", str(BANK), is_default=True)
server.PromptServer(asyncio.new_event_loop())  # nodes tell it what they show
asyncio.run(init_builtin_extra_nodes())
OURS = {node.GET_SCHEMA().node_id: node for node in asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())}
HIDDEN = {io.Hidden.unique_id: "1"}

PLAIN, WORDED, NEGATIVE = "a dog in the snow", "a <twin> in the snow", "a red boat on the beach"
BEFORE, AFTER = "before", "after"
TOLERANCE = 2e-4  # of the largest value of a picture, fp32
FELT = 1e-3  # likewise: less than this is no change


def call(node: str, **inputs: Any) -> Any:
    """The outputs of a node, as the executor gets them: one alone as it is, several as a tuple."""
    kind = (OURS | NODE_CLASS_MAPPINGS)[node]
    defaults = {key: default(entry) for key, entry in kind.INPUT_TYPES().get("required", {}).items() if key not in inputs}
    inputs |= {key: value for key, value in defaults.items() if value is not None}
    if issubclass(kind, io.ComfyNode):
        kind = kind.PREPARE_CLASS_CLONE({**HIDDEN, "hidden_inputs": HIDDEN})
        found = kind.EXECUTE_NORMALIZED(**inputs).result
    else:
        found = getattr(kind(), kind.FUNCTION)(**inputs)
        found = found["result"] if isinstance(found, dict) else found
    return found[0] if len(found) == 1 else tuple(found)


def default(entry: tuple) -> Any:
    """What the page puts into a widget that nobody touched."""
    kind, *more = entry
    if more and "default" in more[0]:
        return more[0]["default"]
    options = kind if isinstance(kind, list) else (more[0].get("options") if more else None)
    return options[0] if options else None


def exists(node: str) -> bool:
    return node in NODE_CLASS_MAPPINGS


def write_concept(name: str, source: str, word_rows: torch.Tensor | None = None, scale: float = 1.0) -> None:
    """A concept file (docs/format.md) with the factors of a shipped one, times ``scale``, and with words of its own ``[k, R, D]``."""
    with safe_open(PACK / "cidm_ops" / "doodle" / "ten" / f"{source}.safetensors", "pt") as file:
        header, tokens = (json.loads(file.metadata()[key]) for key in ("cidm", "cidm.tokens"))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- it has no iterator
    tensors = {key: t * scale if "lora_up" in key else t for key, t in tensors.items()}
    header |= {"name": name, "words": [f"<{name}.{i}>" for i, _ in enumerate(header["words"], 1)]}
    if word_rows is not None:
        header |= {"words": [f"<{name}.{i + 1}>" for i in range(len(word_rows))], "token_shapes": {"clip_l": list(word_rows.shape)}}
        tokens = {"clip_l": base64.b64encode(word_rows.numpy().astype("<f4").tobytes()).decode()}
    about = {"cidm": json.dumps(header), "cidm.tokens": json.dumps(tokens), "modelspec.title": name}
    safetensors.torch.save_file(tensors, BANK / f"{name}.safetensors", about)


def write_factors(name: str, layer: str, trigger: str = "ohwx") -> None:
    """A concept without words, as an imported LoRA, with large factors on one linear layer of Doodle."""
    with safe_open(BANK / "twin.safetensors", "pt") as file:
        known = json.loads(file.metadata()["cidm"])
    width = scene().model.model.diffusion_model.input_blocks[3][1].proj_in.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    key = f"lora_unet_{layer.replace('.', '_')}"
    tensors = {f"{key}.lora_up.weight": torch.randn(width, 4, generator=generator)}
    tensors |= {f"{key}.lora_down.weight": torch.randn(4, width, generator=generator), f"{key}.alpha": torch.tensor(4.0)}
    header = known | {"name": name, "class_word": "", "words": [], "triggers": [trigger], "layers": [layer]}
    header |= {"training": {}, "token_shapes": {}}
    about = {"cidm": json.dumps(header), "cidm.tokens": "{}", "modelspec.title": name}
    safetensors.torch.save_file(tensors, BANK / f"{name}.safetensors", about)


def write_infusion(name: str, class_word: str, scale: float) -> None:
    """An Infusion concept of random residuals."""
    with safe_open(BANK / "twin.safetensors", "pt") as file:
        known = json.loads(file.metadata()["cidm"])
    layers = [layer for layer in known["layers"] if layer.endswith("attn2.to_v")]
    generator = torch.Generator().manual_seed(0)
    with safe_open(BANK / "twin.safetensors", "pt") as file:
        widths = [len(file.get_tensor(f"lora_unet_{layer.replace('.', '_')}.lora_up.weight")) for layer in layers]
    residuals = {f"infusion.{layer}": scale * torch.randn(w, generator=generator) for layer, w in zip(layers, widths, strict=True)}
    header = {key: known[key] for key in ("architecture", "fingerprint", "task")} | {"format": 2, "method": "infusion", "words": []}
    header |= {"name": name, "class_word": class_word, "layers": [], "residuals": layers, "training": {}, "token_shapes": {}}
    about = {"cidm": json.dumps(header), "cidm.tokens": "{}", "modelspec.title": name}
    safetensors.torch.save_file(residuals, BANK / f"{name}.safetensors", about)


class Scene:
    """Doodle, a bank of concepts of which the host can paint some by itself, and pictures."""

    def __init__(self):
        self.model, self.clip, self.vae, self.vision = call("CIDMDoodleModel")
        BANK.mkdir(parents=True, exist_ok=True)
        table = self.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight

        def rows_of(word: str) -> torch.Tensor:
            """The base's own row of a word for each of the seven layers ``[1, 7, D]``."""
            token = self.clip.tokenize(word)["l"][0][1][0]
            return table[token].detach().float().cpu().expand(1, 7, -1).contiguous()

        write_concept("twin", "dog", rows_of("dog"))
        write_concept("brush", "ink", rows_of("red"), scale=0.0)  # a style acts at its words only, which the host's loader cannot
        for name in ("dog", "cat", "ink"):
            write_concept(name, name)
        write_infusion("charm", "dog", 0.5)
        self.bank = call("CIDMOpenBank", name="table")
        self.negative = self.text(NEGATIVE)

    def text(self, prompt: str, clip: Any = None) -> list:
        return call("CLIPTextEncode", clip=clip or self.clip, text=prompt)

    def worded(self, prompt: str = WORDED, clip: Any = None) -> list:
        return call("CIDMEncodePrompt", clip=clip or self.clip, bank=self.bank, text=prompt)[0]

    def settings(self, **how: Any) -> Any:
        defaults = {"power": 2.0, "norm": "max", "similarity": "cosine", "positions": "words", "threshold": 0.0, "scale": 1.0}
        defaults |= {"encoding": "each on its own", "negative": True, "path": "merged"}
        return call("CIDMAggregationSettings", **{**defaults, **how})

    def aggregated(self, model: Any, prompt: str, **how: Any) -> tuple[Any, list]:
        given = {"settings": self.settings(**how)} if how else {}
        patched = call("CIDMAggregate", model=model, clip=self.clip, bank=self.bank, text=prompt, mode="exact", strength=1.0, **given)[0]
        return patched, self.worded(prompt)

    def painted_in_regions(self, model: Any, whole: str, left: str, right: str, **how: Any) -> tuple[Any, list]:
        boxes = [{"text": left, "box": [0, 0, 0.5, 1]}, {"text": right, "box": [0.5, 0, 1, 1]}]
        given = {"clip": self.clip, "bank": self.bank, "regions": call("CIDMRegionBoxes", boxes=json.dumps(boxes)), "text": whole}
        given |= {"preset": "fast", "mode": "exact", "strength": 1.0} | how
        return call("CIDMPaintRegions", model=model, **given)[:2]

    def infused(self, model: Any, prompt: str, stream: str = "dual", nowhere: bool = False) -> tuple[Any, list]:
        given = {"text": prompt, "strength": 1.0, "stream": stream, "start": 0.0, "end": 1.0, "layers": "all"}
        if nowhere:
            box = {"left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0, "strength": 1.0, "priority": 0, "feather": 0.0}
            given["regions"] = call("CIDMRegion", text="a <charm>", mask=torch.zeros(1, 16, 16), **box)
        return call("CIDMInfusion", model=model, clip=self.clip, bank=self.bank, **given)[:2]

    def with_lora(self, model: Any) -> Any:
        return call("LoraLoaderModelOnly", model=model, lora_name="twin.safetensors", strength_model=1.0)

    def paint(self, model: Any, positive: list, negative: list | None = None, **how: Any) -> torch.Tensor:
        """A latent of the KSampler: one step, guidance 4, 128 x 128 pixels."""
        latent = {"samples": torch.zeros(how.pop("shape", (1, 4, 16, 16)))} | how.pop("latent", {})
        given = {"seed": 1, "steps": 1, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0} | how
        negative = self.negative if negative is None else negative
        return call("KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **given)["samples"]

    def guided(self, guider: Any, sampler: Any = None, **how: Any) -> torch.Tensor:
        """The same picture through SamplerCustomAdvanced."""
        latent = {"samples": torch.zeros(how.pop("shape", (1, 4, 16, 16)))}
        sigmas = call("BasicScheduler", model=self.model, scheduler="normal", steps=how.pop("steps", 1), denoise=1.0)
        sampler = sampler or call("KSamplerSelect", sampler_name="euler")
        noise = call("RandomNoise", noise_seed=1)
        return call("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent)[0]["samples"]


@functools.cache
def scene() -> Scene:
    return Scene()


@dataclass(frozen=True)
class Subject:
    """``make(scene, model)`` is the product's model and positive text; the host paints the same with the twin's LoRA or, where ``lora``
    is off, plainly. ``lively`` is the same kind of model with words and places that differ. In ``weights``, concepts are weight patches
    of the host, so that their order among others counts.
    """

    name: str
    column: str
    make: Callable[[Scene, Any], tuple[Any, list]]
    lively: Callable[[Scene, Any], tuple[Any, list]]
    lora: bool = True
    weights: bool = False


def _region_noise(s: Scene) -> Any:
    given = {"alpha": 0.25, "start_percent": 0.0, "end_percent": 1.0, "overlap": "mean", "feather": 0.0, "bootstrap_percent": 0.0}
    return call("CIDMRegionNoise", **given, features=False)


LEFT, RIGHT = "a <dog> in the snow", "a <cat> in the snow"
SUBJECTS = {
    s.name: s
    for s in (
        Subject(
            "merged concepts",
            "concepts",
            lambda s, model: s.aggregated(model, WORDED),
            lambda s, model: s.aggregated(model, "a <dog> and a <cat> in the snow"),
            weights=True,
        ),
        Subject(
            "routed concepts",
            "concepts",
            lambda s, model: s.aggregated(model, WORDED, path="routed", reach="everywhere"),
            lambda s, model: s.aggregated(model, "a <dog> and a <cat> in the snow", path="routed", reach="words and end"),
        ),
        Subject(
            "a style",
            "concepts",
            lambda s, model: s.aggregated(model, "a <brush> dog in the snow"),
            lambda s, model: s.aggregated(model, "a dog in the snow, <ink>"),
            lora=False,
        ),
        Subject(
            "regions",
            "regions",
            lambda s, model: s.painted_in_regions(model, WORDED, WORDED, WORDED),
            lambda s, model: s.painted_in_regions(model, "in the snow", LEFT, RIGHT),
        ),
        Subject(
            "region noise",
            "regions",
            lambda s, model: s.painted_in_regions(model, WORDED, WORDED, WORDED, noise=_region_noise(s)),
            lambda s, model: s.painted_in_regions(model, "in the snow", LEFT, RIGHT, preset="paper"),
        ),
        Subject(
            "Infusion",
            "Infusion",
            lambda s, model: s.infused(model, "a <charm> in the snow", nowhere=True),
            lambda s, model: s.infused(model, "a <charm> in the snow"),
            lora=False,
        ),
    )
}
SAID = {"a style": "a red dog in the snow"}  # what the host paints plainly; else PLAIN


@dataclass(frozen=True)
class Patch:
    """A node of the host that takes a MODEL and gives one; ``because`` are words that an error may name it by, ``paint`` is how it is
    painted, ``scales`` says that it multiplies weights, for which the host's order among weight patches counts.
    """

    node: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    because: tuple[str, ...] = ()
    paint: Mapping[str, Any] = field(default_factory=dict)
    scales: bool = False
    label: str = ""

    @property
    def title(self) -> str:
        return self.label or self.node

    def apply(self, s: Scene, model: Any) -> Any:
        given = {key: value(s) if callable(value) else value for key, value in self.inputs.items()}
        return call(self.node, model=model, **given)


def told(error: Exception, because: tuple[str, ...]) -> str:
    """The verdict over an error: it names the node or what it does, or it fails."""
    message = " ".join(str(error).split())
    if any(word.lower() in message.lower() for word in because):
        return f"refused: {message}"
    return f"FAILS: {type(error).__name__} that does not name it: {message[:160]}"


def attempt(paint: Callable[[], torch.Tensor], because: tuple[str, ...]) -> torch.Tensor | str:
    """A picture, or the verdict over the error in its place."""
    try:
        return paint()
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:
        return told(error, because)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference as a part of the largest value of ``b``."""
    return float((a - b).abs().max() / b.abs().max())


def verdict(got: torch.Tensor | str, want: torch.Tensor, what: str = "the host's own", tolerance: float = TOLERANCE) -> str:
    """In words: equal, refused, or what is wrong."""
    if isinstance(got, str):
        return got
    if got.shape != want.shape:
        return f"FAILS: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    off = apart(got, want)
    return "equal" if off <= tolerance else f"FAILS: {off:.2g} from {what}"


def check_all(found: Mapping[tuple[str, str], str]) -> None:
    """Fail with all that is wrong."""
    wrong = [", ".join(key) + said.replace("FAILS", "") for key, said in found.items() if said.startswith("FAILS")]
    assert not wrong, f"{len(wrong)} of {len(found)}\n" + "\n".join(wrong)


class Table:
    """What was found for each node and column, kept beside the results of the checks."""

    def __init__(self):
        self.path = RESULTS.with_name("table.json")
        self.cells: dict[str, dict[str, dict[str, str]]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def note(self, node: str, column: str, subject: str, said: str) -> None:
        self.cells.setdefault(node, {}).setdefault(column, {})[subject] = said
        self.path.write_text(json.dumps(self.cells))

    def check(self, found: Mapping[tuple[str, str], str], column: str) -> None:
        """Keep what was found, ``(node, subject)`` to verdict, and fail with all that is wrong."""
        for (node, subject), said in found.items():
            self.note(node, column, subject, said)
        check_all(found)

    def markdown(self) -> str:
        """A line for each node, a column for each way to paint."""
        columns = ("concepts", "regions", "Infusion")
        lines = ["| node | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for node, row in self.cells.items():
            lines.append(f"| {node} | " + " | ".join(summary(row.get(column, {})) for column in columns) + " |")
        return "\n".join(lines) + "\n"


def summary(cells: Mapping[str, str]) -> str:
    """A cell of the table: one word where all its subjects agree."""
    if not cells:
        return ""
    kinds: dict[str, list[str]] = {}
    for subject, said in cells.items():
        kinds.setdefault(said.replace("|", "/"), []).append(subject)
    if len(kinds) == 1:
        return next(iter(kinds))
    return "; ".join(f"{', '.join(subjects)}: {said}" for said, subjects in kinds.items())


TABLE = Table()
