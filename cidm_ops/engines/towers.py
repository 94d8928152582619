"""Image towers for scores, with the text side where there is one: Doodle's, or a model of the user's own. Never downloads."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..doodle import files
from ..models.clip import END
from ..printable import brief
from ..text_file import read_json
from .doodle import DoodleReader, DoodleTower
from .tokenizer import tokenize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
KINDS = "'doodle', a folder of transformers (CLIP, DINO, DINOv2, ViT), or a .safetensors file of CLIP in transformers' layout"


class Tower:
    """Pictures ``[B, 3, H, W]`` in [-1, 1] to embeddings ``[B, E]``, and captions to ``[B, E]`` in the space of ``shown``: the same one,
    unless the model ``reads`` pictures by an image side of its own. ``side`` says how many pixels of a picture's side it sees, and
    ``projection [E, D]`` leads from the ends of texts into its space, where that is known.
    """

    def __init__(
        self,
        see: Callable[[Tensor], Tensor],
        read: Callable[[Sequence[str]], Tensor] | None,
        fingerprint: str,
        reads: Callable[[Tensor], Tensor] | None = None,
        side: int = 0,
        projection: Tensor | None = None,
    ):
        self.see, self.read, self.fingerprint, self.reads = see, read, fingerprint, reads or see
        self.side, self.projection = side, projection

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        return self.see(pictures).float().cpu()

    @torch.no_grad()
    def shown(self, pictures: Tensor) -> Tensor:
        """Embed what pictures show, to compare it with captions."""
        return self.reads(pictures).float().cpu()

    @torch.no_grad()
    def captions(self, texts: Sequence[str]) -> Tensor | None:
        """None where the model has no text side."""
        return None if self.read is None else torch.cat([self.read(texts[i : i + 64]).float().cpu() for i in range(0, len(texts), 64)])


def load_tower(place: str, device: torch.device | str = "cpu") -> Tower:
    """Raises ``FileNotFoundError`` if there is nothing of that name, ``ValueError`` if it is no such model."""
    if place == "doodle":
        tower, reader = DoodleTower(), DoodleReader()
        known = f"{_fingerprint(tower.model)}-{_fingerprint(reader.model)}"
        size, bridge = files.VISION_CONFIG["image_size"], files.bridge_weight()
        own, other = (lambda pictures: tower(pictures.cpu())), (lambda pictures: reader(pictures.cpu()))
        return Tower(own, reader.captions, known, other, size, bridge)
    path = Path(place).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such image tower: expected {KINDS}")
    vision, text, mean, std, size = _from_folder(path) if path.is_dir() else _from_file(path)
    vision = vision.eval().requires_grad_(False).to(device)
    text = text and text.eval().requires_grad_(False).to(device)

    def see(pictures: Tensor) -> Tensor:
        out = vision(prepare(pictures.to(device), size, mean, std))
        return out if isinstance(out, Tensor) else out.last_hidden_state[:, 0]

    def read(texts: Sequence[str]) -> Tensor:
        return text(torch.cat([tokenize(t)[:1] for t in texts]).to(device))

    projection = text.projection.weight if text else None
    return Tower(see, read if text else None, _fingerprint(vision), side=size, projection=projection)


def prepare(pictures: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Prepare pictures as CLIP sees them: the shorter side resized (bicubic), the middle square, normalised."""
    height, width = pictures.shape[-2:]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = (max(size, round(height * scale)), max(size, round(width * scale)))
        pictures = F.interpolate(pictures, shape, mode="bicubic", antialias=True)
    top, left = (pictures.shape[-2] - size) // 2, (pictures.shape[-1] - size) // 2
    square = pictures[..., top : top + size, left : left + size].clamp(-1, 1) / 2 + 0.5
    return (square - torch.tensor(mean).to(square)[:, None, None]) / torch.tensor(std).to(square)[:, None, None]


class _Side(nn.Module):
    """One side of a CLIP with its projection."""

    def __init__(self, model: Any, projection: Any):
        super().__init__()
        self.model, self.projection, self.config = model, projection, model.config

    def forward(self, given: Tensor) -> Tensor:
        return self.projection(self.model(given).pooler_output)


def _from_folder(path: Path) -> tuple[Any, Any, Sequence[float], Sequence[float], int]:
    if not (path / "config.json").is_file():
        raise ValueError(f"{path}: there is no config.json: expected {KINDS}")
    config = read_settings(path / "config.json")
    kind, text = config.get("model_type", ""), None
    try:
        if kind in ("clip", "clip_vision_model"):
            whole = (CLIPModel if kind == "clip" else CLIPVisionModelWithProjection).from_pretrained(path, local_files_only=True)
            vision, text = _Side(whole.vision_model, whole.visual_projection), None
            if kind == "clip":
                text = _Side(whole.text_model, whole.text_projection)
        else:
            vision = AutoModel.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: no image tower can be loaded from it ({brief(error)}): expected {KINDS}") from error
    shape = getattr(vision.config, "image_size", None)
    if not isinstance(shape, int):
        raise ValueError(f"{path}: a model of type {kind!r} says no size of pictures: expected {KINDS}")
    seen = path / "preprocessor_config.json"
    how = read_settings(seen) if seen.is_file() else {}
    size = how.get("crop_size", {}).get("height", shape) if isinstance(how.get("crop_size"), dict) else shape
    return vision, text, how.get("image_mean", MEAN), how.get("image_std", STD), size


def read_settings(file: Path) -> dict[str, Any]:
    """A configuration file of a tower's folder. Raises ``ValueError`` that names it."""
    if not isinstance(settings := read_json(file), dict):
        raise ValueError(f"{file} holds no settings: get the tower again")
    return settings


def _from_file(path: Path) -> tuple[Any, Any, Sequence[float], Sequence[float], int]:
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no .safetensors file ({brief(error)}): expected {KINDS}") from error
    try:
        table, patches = state["vision_model.embeddings.position_embedding.weight"], state["vision_model.embeddings.patch_embedding.weight"]
        width, patch = patches.shape[0], patches.shape[-1]
        size = round((len(table) - 1) ** 0.5) * patch
        act = "quick_gelu" if width <= 1024 else "gelu"  # as ComfyUI takes them: OpenAI's up to L, LAION's above
        vision = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=_layers(state, "vision_model"),
            num_attention_heads=HEADS.get(width, max(1, width // 64)),
            image_size=size,
            patch_size=patch,
            projection_dim=state["visual_projection.weight"].shape[0],
            hidden_act=act,
        )
        text = None
        if "text_projection.weight" in state:
            words = state["text_model.embeddings.token_embedding.weight"]
            text = CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=words.shape[1],
                intermediate_size=state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=_layers(state, "text_model"),
                num_attention_heads=max(1, words.shape[1] // 64),
                projection_dim=state["text_projection.weight"].shape[0],
                hidden_act=act,
                eos_token_id=END,
            )
    except KeyError as error:
        raise ValueError(f"{path} lacks {error.args[0]}: expected {KINDS}") from error
    seen = _filled(CLIPVisionModelWithProjection, vision, state, ("vision_model.", "visual_projection."), path)
    read = text and _filled(CLIPTextModelWithProjection, text, state, ("text_model.", "text_projection."), path)
    sides = _Side(seen.vision_model, seen.visual_projection), read and _Side(read.text_model, read.text_projection)
    return *sides, MEAN, STD, size


def _layers(state: dict[str, Tensor], side: str) -> int:
    return 1 + max(int(k.split(".")[3]) for k in state if k.startswith(f"{side}.encoder.layers."))


def _filled(kind: Any, config: Any, state: dict[str, Tensor], prefixes: tuple[str, ...], path: Path) -> Any:
    with init_empty_weights():
        model = kind(config)
    names = model.state_dict()
    own = {k: v.float() if v.is_floating_point() else v for k, v in state.items() if k.startswith(prefixes)}
    own = {k if k in names else k.split(".", 1)[1]: v for k, v in own.items()}  # newer transformers leave the first part out
    missing, _ = model.load_state_dict(own, strict=False, assign=True)
    if missing := [name for name in missing if "position_ids" not in name]:
        raise ValueError(f"{path} lacks {missing[0]} and {len(missing) - 1} others: expected {KINDS}")
    for module in model.modules():  # buffers of positions are made, not loaded
        if isinstance(getattr(module, "position_ids", None), Tensor) and module.position_ids.is_meta:
            module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
    return model


def _fingerprint(model: nn.Module) -> str:
    """A short hash of some weights: tells towers apart."""
    digest = hashlib.sha256()
    for name, weight in list(model.named_parameters())[:: max(1, len(list(model.parameters())) // 8)]:
        digest.update(name.encode() + weight.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]
