"""What the method sees of a model: one protocol, implemented by ``engines/diffusers.py`` and ``nodes/host.py``, and the little that it
needs of a model on which concepts are only painted.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .models.family import Family
from .models.module import Slice
from .schedule import Schedule


class Backbone(Protocol):
    """A latent diffusion model.

    Shapes: pictures ``[B, 3, H, W]`` in [-1, 1], latents ``[B, C, h, w]`` as the model sees them (``family.latent_shape``), token rows
    ``[..., D]``, contexts ``[B, N, C]`` (one text for all layers) or ``[B, L, N, C]`` (layer-wise), timesteps ``[B]``
    int64 in 0..999.
    """

    family: Family  # what is particular to models of its kind: names, ids, sizes
    architecture: str  # family, layers and token width, such as "sd1-16x768"; a concept fits its own only
    fingerprint: str  # a short hash of base weights: tells checkpoints of one architecture apart
    encoders: Sequence[str]  # the names of the family's text encoders
    unet: nn.Module
    blocks: Mapping[str, nn.Module]  # canonical name -> transformer block, in layer order
    cross_attention: Mapping[str, nn.Module]  # the layers that each read a text of their own, by canonical name, in order
    layers: Mapping[str, nn.Module]  # all linear layers and convolutions of the model
    device: torch.device
    dtype: torch.dtype  # that the U-Net computes in
    schedule: Schedule  # of the 1000 trained timesteps
    texts: Mapping[str, nn.Module]  # the text models by encoder, as ``causal.text_states`` takes them

    def tokenize(self, text: str, encoder: str = "") -> Tensor:
        """Token ids ``[chunks, N]`` int64 with start, end and padding, split as the host splits long prompts; N is the encoder's ``chunk``.

        Here and below the encoder is the first one if none is named.
        """
        ...

    def token_rows(self, ids: Tensor, encoder: str = "") -> Tensor:
        """Rows of the token table for ``ids [...]``: ``[..., D]`` fp32, no gradient."""
        ...

    def encode_text(self, ids: Tensor, rows: Tensor, encoder: str = "", shared: int = 0) -> tuple[Tensor, Tensor | None]:
        """Hidden states ``[B, N, C]`` of ``ids [B, N]`` with token rows ``[B, N, D]``, as the model reads them, and the pooled state
        ``[1, P]`` of the first row if the model uses that of this encoder; differentiable in the rows. The first ``shared`` positions
        are the same in all rows, and computed once.
        """
        ...

    def end_states(self, ids: Tensor, rows: Tensor, encoder: str = "", projected: bool = False) -> Tensor:
        """The normed last states ``[B, D]`` at the ends of texts ``ids [B, N]`` with token rows ``[B, N, D]``, which a text projection
        reads; ``projected`` by the encoder's own, ``[B, E]``. Differentiable in the rows.
        """
        ...

    def text_state(self) -> Hashable | None:
        """What ``tokenize``, ``token_rows`` and ``encode_text`` depend on beside what they are given: as long as it is equal, so are their
        results. None if that cannot be told.
        """
        ...

    def encode_image(self, pictures: Tensor) -> Tensor: ...

    def decode_latent(self, latents: Tensor) -> Tensor: ...

    def training_mode(self, x: Tensor) -> AbstractContextManager[None]:
        """Make ``predict`` of ``x`` differentiable while this is open, also by a backward pass that computes parts of it again."""
        ...

    def free_memory(self) -> None:
        """Memory is short: move off the device what a step can do without."""
        ...

    def predict(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None) -> Tensor:
        """The model's output (epsilon, v or flow) at ``x [B, C, h, w]``; some families also read the ``pooled [B, P]`` text."""
        ...


@dataclass
class Transformer:
    """A model in which all layers read one text, as far as concepts are painted on it: where its layers lie in the host's.

    ``cross_attention`` has the names of the attentions in which the image reads the text, in order.
    """

    family: Family
    architecture: str
    layers: Mapping[str, Slice]
    cross_attention: Mapping[str, Any]
    texts: Mapping[str, nn.Module] = field(default_factory=dict)
    fingerprint: str = ""


class TransformerBackbone(Transformer):
    """A transformer that also learns: what a ``Backbone`` is to a U-Net. Its ``layers`` lie in ``modules``.

    Shapes are those of a ``Backbone``, but that all layers read one text ``[B, N, C]``. An engine implements what raises here.
    """

    unet: nn.Module
    blocks: Mapping[str, nn.Module]
    modules: Mapping[str, nn.Module]  # by the engine's names
    device: torch.device
    dtype: torch.dtype
    schedule: Schedule  # as it is painted
    encoders: Sequence[str] = ()  # none of which has words of a concept

    def read(self, text: str) -> tuple[Tensor, Tensor | None]:
        """What the model reads of a text: states ``[1, N, C]``, without padding that is masked, and the pooled state ``[1, P]`` if it reads
        one, in main memory.
        """
        raise NotImplementedError

    def tokenize(self, text: str) -> Tensor:
        """The ids ``[1, N]`` of the tokens whose states the model reads."""
        raise NotImplementedError

    def drop_encoders(self) -> None:
        """All texts are read: let go of what the text encoders take. Reading another one gets them again."""
        raise NotImplementedError

    def encode_image(self, pictures: Tensor) -> Tensor:
        raise NotImplementedError

    def decode_latent(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    def training_mode(self, x: Tensor) -> AbstractContextManager[None]:
        """See ``Backbone``."""
        raise NotImplementedError

    def free_memory(self) -> None:
        """See ``Backbone``."""
        raise NotImplementedError

    def predict(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None, guidance: float | None = None) -> Tensor:
        """The flow at ``x [B, C, h, w]``. A model that was distilled by guidance is told this one, or what its family paints with."""
        raise NotImplementedError

    def read_several(self, lengths: Sequence[int], ask: Callable[..., Tensor]) -> AbstractContextManager[None]:
        """Let ``predict`` read texts of these ``lengths`` that stand behind each other, each filled up and placed as it is alone, and ask
        ``ask(q, k, v, mask, attend)`` in place of the attention of its blocks, while this is open: see ``joint_sites.AttentionSlot``.
        """
        raise NotImplementedError
