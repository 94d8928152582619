"""The shipped image tower through transformers: pictures to embeddings, for scores."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

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
