"""The shipped image tower and its caption side through transformers: pictures and captions to one embedding, for scores."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..engines.tokenizer import tokenize
from . import files


class DoodleTower:
    """Pictures ``[B, 3, H, W]`` in [-1, 1] to image embeddings ``[B, 128]``; other sizes are resized to 128."""

    def __init__(self) -> None:
        self.model = CLIPVisionModelWithProjection(CLIPVisionConfig(**files.VISION_CONFIG)).eval()
        self.model.load_state_dict(files.vision_state())

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        if pictures.shape[-1] != 128 or pictures.shape[-2] != 128:
            pictures = F.interpolate(pictures, (128, 128), mode="bilinear", antialias=True)
        return self.model(pictures).image_embeds


class DoodleCaptions:
    """Captions to embeddings ``[B, 128]`` in the space of ``DoodleTower``."""

    def __init__(self) -> None:
        config = CLIPTextConfig(**files.TEXT_CONFIG, vocab_size=files.VOCABULARY, eos_token_id=files.END)
        self.model = CLIPTextModelWithProjection(config).eval()
        names = self.model.state_dict()
        state = {k if k in names else k.removeprefix("text_model."): v for k, v in files.caption_state().items()}
        self.model.load_state_dict(state)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        return self.model(torch.cat([tokenize(caption)[:1] for caption in captions])).text_embeds
