"""The shipped image tower and the reader of captions through transformers: pictures and captions to embeddings, for scores."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..doodle import files
from ..models import clip
from .tokenizer import tokenize


class DoodleTower:
    """Pictures ``[B, 3, H, W]`` in [-1, 1] to embeddings ``[B, 128]`` that tell individuals apart; other sizes are resized to 128."""

    def __init__(self) -> None:
        self.model = _vision(files.vision_state())

    def __call__(self, pictures: Tensor) -> Tensor:
        return _seen(self.model, pictures)


class DoodleReader:
    """Pictures and captions to embeddings ``[B, 128]`` of one space, in which only what words say counts."""

    def __init__(self) -> None:
        self.model = _vision(files.reader_state())
        config = CLIPTextConfig(**files.READER_TEXT, vocab_size=clip.VOCABULARY, eos_token_id=clip.END)
        self.text = CLIPTextModelWithProjection(config).eval()
        names = self.text.state_dict()
        state = {k if k in names else k.removeprefix("text_model."): v for k, v in files.caption_state().items()}
        self.text.load_state_dict(state)

    def __call__(self, pictures: Tensor) -> Tensor:
        return _seen(self.model, pictures)

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        return self.text(torch.cat([tokenize(caption)[:1] for caption in captions])).text_embeds


def _vision(state: dict[str, Tensor]) -> CLIPVisionModelWithProjection:
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**files.vision_config(state))).eval()
    model.load_state_dict(state)
    return model


@torch.no_grad()
def _seen(model: CLIPVisionModelWithProjection, pictures: Tensor) -> Tensor:
    if pictures.shape[-1] != 128 or pictures.shape[-2] != 128:
        pictures = F.interpolate(pictures, (128, 128), mode="bilinear", antialias=True)
    return model(pictures).image_embeds
