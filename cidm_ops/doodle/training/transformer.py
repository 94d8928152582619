"""Doodle as a transformer: Lumina 2 in small, trained as a rectified flow on the latents and the texts of its U-Net."""

from pathlib import Path

import torch
from diffusers import Lumina2Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from ...engines.checkpoint import text_model
from ...engines.lumina_at_once import AtOnce
from ...models.doodle_transformer import DOODLE_TRANSFORMER
from ...models.sd import DOODLE
from ..files import with_table
from .alignment import align_transformer
from .diffusion import DiffusionRecipe, Pictures, loss_of, schedule_of
from .loop import Optimisation, Session, train
from .tokens import Tokens, table_rows

CHECKPOINT = "transformer"


def new_transformer() -> Lumina2Transformer2DModel:
    """A transformer of 4.2 M parameters whose blocks pass on what they are given, and whose answer is 0 (adaLN-Zero, Peebles and Xie
    2023).
    """
    model = Lumina2Transformer2DModel(**DOODLE_TRANSFORMER.diffusers.model)
    for name, module in model.named_modules():
        if name.endswith("norm1.linear") or name == "norm_out.linear_2":
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    return model


def trained_text(file: Path) -> CLIPTextModel:
    """The text encoder in a ``file`` of the U-Net's stage, with its whole token table, frozen. Raises ``ValueError`` where weights are
    missing.
    """
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()}
    kind = DOODLE.encoder()
    return text_model(kind, DOODLE.diffusers.texts[kind.name], with_table(state), file).eval().requires_grad_(False)


def learn_transformer(
    model: Lumina2Transformer2DModel,
    text: CLIPTextModel,
    pictures: Pictures,
    tokens: Tokens,
    session: Session,
    *,
    steps: int,
    recipe: DiffusionRecipe,
) -> None:
    """Train the model by the recipe, which predicts a flow, on texts of a frozen encoder, each cut to its end: see ``loss_of``."""
    device, longest, end = model.device, tokens.longest, DOODLE.encoder().end
    rows, sigma = table_rows(tokens).to(device), schedule_of(recipe.prediction).sigma.to(device)
    answer = AtOnce(model)

    def guess(noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """The model counts time from noise to picture and answers the way back."""
        ids = rows[ids]
        lengths = (ids == end).int().argmax(1) + 1
        with torch.no_grad():
            states = text(ids[:, :longest]).last_hidden_state
        return -answer(noisy, 1 - sigma[t], states, lengths)

    parts = nn.ModuleDict({"model": model})
    if pictures.sights is not None:
        parts["alignment"] = align_transformer(model, pictures.sights.shape[1]).to(device)
    how = Optimisation(steps, recipe.lr, muon=True)
    average = train(CHECKPOINT, parts, loss_of(guess, pictures, tokens, recipe, parts, device), session, how)
    with torch.no_grad():
        for k, p in parts.named_parameters():
            p.copy_(average[k])
