"""Lumina 2 with texts of different length in one batch."""

from typing import Any

import torch
from torch import Tensor

from ..models.nextdit import BOTH, IMAGE, TEXT


class AtOnce:
    """A Lumina 2 that answers pictures with texts of different length at once; its own forward takes them one by one.

    A text is filled up to the longest, which nothing reads, and the image's tokens come behind all that; each has the place in its text's
    order that it has there.
    """

    def __init__(self, model: Any):
        self.model = model
        self.places = [table.to(model.device, torch.complex64) for table in model.rope_embedder.freqs_cis]  # of text, rows, columns

    def __call__(self, noisy: Tensor, t: Tensor, states: Tensor, lengths: Tensor) -> Tensor:
        """The answer to ``noisy [B, C, h, w]`` at times ``t [B]`` by texts ``states [B, N, E]``, each as long as ``lengths [B]`` says."""
        model, (order, down, right) = self.model, self.places
        batch, channels, height, width = noisy.shape
        longest, p = states.shape[1], int(model.config.patch_size)
        rows, columns = height // p, width // p
        time, text = model.time_caption_embed(noisy, t, states)
        image = noisy.view(batch, channels, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        image = model.x_embedder(image)
        inside = torch.arange(longest, device=noisy.device) < lengths[:, None]
        of_text = torch.cat([order[:longest], down[:1].expand(longest, -1), right[:1].expand(longest, -1)], 1).expand(batch, -1, -1)
        grid = torch.cat([down[:rows].repeat_interleave(columns, 0), right[:columns].repeat(rows, 1)], 1)
        of_image = torch.cat([order[lengths][:, None].expand(-1, len(grid), -1), grid.expand(batch, -1, -1)], 2)
        for block in getattr(model, TEXT):
            text = block(text, inside, of_text)
        for block in getattr(model, IMAGE):
            image = block(image, None, of_image, time)
        tokens, places = torch.cat([text, image], 1), torch.cat([of_text, of_image], 1)
        seen = torch.cat([inside, inside.new_ones(batch, rows * columns)], 1)
        for block in getattr(model, BOTH):
            tokens = block(tokens, seen, places, time)
        made = model.norm_out(tokens[:, longest:], time).unflatten(1, (rows, columns)).unflatten(3, (p, p, -1))
        return made.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
