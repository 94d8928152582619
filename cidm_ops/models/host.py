"""What ComfyUI calls a model family and its parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Restart = Literal["ends", "begins"]


@dataclass(frozen=True)
class JointText:
    """The host's names say how a transformer takes the text that it joins with the image in one sequence, the text first.

    ``positions`` is the module that makes rotations of the places of tokens (RoPE, Su et al. 2021), if text tokens have places of their
    own, and ``embedder`` the one that turns a text into tokens, which are filled up to a ``multiple`` with the parameter ``pad``.
    ``restart`` says which place a text has wherever it stands: it "ends" right before the image, which comes after the last text, or it
    "begins" where every text does, and the image has its place by itself. An ``adapter`` is the module that texts go through before a model
    is sampled; it answers at the ``tokens`` of this encoder, filled up to a length.
    """

    positions: str = ""
    restart: Restart = "ends"
    embedder: str = ""
    pad: str = ""
    multiple: int = 1
    count: str = ""  # the argument that says how many tokens the text has
    mask: str = ""  # that which says which of them count
    pictures: Sequence[str] = ()  # those with pictures beside the one that is painted, whose texts and places are numbered along
    adapter: str = ""
    tokens: str = ""


@dataclass(frozen=True)
class Host:
    """The host's names say what ComfyUI calls a family: the classes of its model configuration and of its text model, told by name and not
    by import, and how its attention patches tell where they are: part of the model, block and index in it.
    """

    models: Sequence[str] = ()
    others: Sequence[str] = ()  # classes made of those that are another model
    text_model: str = ""
    text: JointText = JointText()  # where a transformer joins it with the image
    wrapped: bool = True  # whether it asks wrappers around the model's forward pass
    patch_place: Callable[[str], tuple[str, int, int]] = lambda module: (module, 0, 0)  # of an attention, by its module's name
