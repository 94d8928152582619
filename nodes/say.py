"""What a node tells its user: text in the node and in the history, warnings in the log too, progress, and Cancel."""

import html
import logging
import time
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from comfy.model_management import InterruptProcessingException, throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..cidm_ops.measure.report import to_pixels
from ..cidm_ops.painting.texts import show_encoding
from ..cidm_ops.printable import printable
from ..cidm_ops.training.trainer import Trainer


def output(cls: type[io.ComfyNode], *values: Any, text: str, warnings: Iterable[str] = (), picture: Tensor | None = None) -> io.NodeOutput:
    """The outputs of a node, with ``text``, the warnings and a picture ``[B, H, W, 3]`` shown in it; control codes of files as escapes."""
    for warning in (warnings := list(warnings)):
        logging.warning("CIDM: %s", printable(warning))
    shown = printable("\n".join([*(f"Warning: {w}" for w in warnings), text]))
    PromptServer.instance.send_progress_text(html.escape(shown, quote=False), cls.hidden.unique_id)  # <dog> would be a tag in the page
    seen = {} if picture is None else ui.PreviewImage(picture, cls=cls).as_dict()
    return io.NodeOutput(*values, ui=seen | ui.PreviewText(shown).as_dict())


def tell_errors(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """Have a node show the text of an error that it ends with: the newest host has it three clicks away. Its bar moves, and Cancel acts,
    while long texts are encoded.
    """
    execute = node.execute.__func__

    @wraps(execute)
    def told(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> Any:
        bar = ProgressBar(1)
        try:
            with show_encoding(bar.update_absolute):
                return execute(cls, *args, **kwargs)
        except InterruptProcessingException:
            raise
        except Exception as error:
            server = PromptServer.instance
            server.send_progress_text(html.escape(printable(f"Error: {error}"), quote=False), server.last_node_id)
            raise

    node.execute = classmethod(told)
    return node


def progress(node: str, text: str) -> Callable[[int, int], None]:
    """Count the parts of something that are done before the bar moves: Cancel stops here, and the node says how far it is."""

    def on_part(done: int, count: int) -> None:
        throw_exception_if_processing_interrupted()
        PromptServer.instance.send_progress_text(text.format(done, count), node)

    return on_part


def teller(node: str) -> Callable[[str], None]:
    """Return a function that shows in the node what it says before it ends, or when it is ended, above what it said before."""
    said: list[str] = []

    def tell(line: str) -> None:
        said.insert(0, line)
        PromptServer.instance.send_progress_text(html.escape(printable("\n".join(said)), quote=False), node)

    return tell


def write_time(seconds: float) -> str:
    """Write a time as people read it on a clock: ``2:04`` or ``1:02:04``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def training_progress(node: str, preview_every: int = 0, preview_prompt: str = "") -> Callable[[Trainer], None]:
    """Report every step of a training: Cancel stops here, the bar moves, about twice a second step, loss and time left appear in the node,
    and every ``preview_every`` steps a picture of ``preview_prompt``.
    """
    bar, shown, began, first = ProgressBar(1), 0.0, 0.0, 0
    send = PromptServer.instance.send_progress_text

    def on_step(trainer: Trainer) -> None:
        nonlocal shown, began, first
        step, steps, now = trainer.step, trainer.config.steps, time.monotonic()
        throw_exception_if_processing_interrupted()
        preview = None
        if preview_every and step % preview_every == 0:
            preview = ("JPEG", Image.fromarray(to_pixels(trainer.preview(preview_prompt)[None])[0]), 512)
        bar.update_absolute(step, steps, preview)
        began, first = began or now, first or step
        if now - shown > 0.5:
            shown, recent = now, trainer.losses[-20:]
            left = (now - began) / (step - first) * (steps - step) if step > first else 0.0
            send(f"{step}/{steps}  loss {sum(recent) / len(recent):.3f}" + (f"  {write_time(left)} left" if left else ""), node)

    return on_step
