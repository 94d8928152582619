"""What a node tells its user: text in the node and in the history, warnings in the log too, progress, and Cancel."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from server import PromptServer
from torch import Tensor


def output(cls: type[io.ComfyNode], *values: Any, text: str, warnings: Iterable[str] = (), picture: Tensor | None = None) -> io.NodeOutput:
    """The outputs of a node, with ``text``, the warnings and a picture ``[B, H, W, 3]`` shown in it."""
    for warning in warnings:
        logging.warning("CIDM: %s", warning)
    shown = "\n".join([*(f"Warning: {w}" for w in warnings), text])
    PromptServer.instance.send_progress_text(shown, cls.hidden.unique_id)
    seen = {} if picture is None else ui.PreviewImage(picture, cls=cls).as_dict()
    return io.NodeOutput(*values, ui=seen | ui.PreviewText(shown).as_dict())


def training_progress(node: str) -> Callable[[int, int, float], None]:
    """For every step: Cancel stops here, the bar moves, and about twice a second the loss appears in the node."""
    bar, shown, mean = ProgressBar(1), 0.0, 0.0

    def on_step(step: int, steps: int, loss: float) -> None:
        nonlocal shown, mean
        throw_exception_if_processing_interrupted()
        bar.update_absolute(step, steps)
        mean += (loss - mean) * max(1 / step, 0.05)
        if time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            PromptServer.instance.send_progress_text(f"step {step} of {steps}, loss {mean:.4f}", node)

    return on_step
