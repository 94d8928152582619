"""A text whose rows bring their plans with them.

A model with layer-wise words, regions or residuals has to know of each row of a batch what it reads. That is not told by the row's
place in the batch: a ``ConceptText`` is the text's tensor ``[B, N, C]`` (the mean over the layers, which a model that knows of no layers
reads) and holds one ``RowPlan`` for each row. What a host or another node does to the text, it does to the plans: to join texts, to put
one behind another, to scale and to mix them, to repeat, cut or cast them. An operation that has no meaning for the plans is refused by
name, and what merely reads the text, a layer for instance, gets plain numbers.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .row_plan import RowPlan, unite


class ConceptText(Tensor):
    """A text ``[B, N, C]`` with a ``RowPlan``, or ``None`` for a plain text, for each of its rows."""

    plans: tuple[RowPlan | None, ...]

    @classmethod
    def of(cls, states: Tensor, plans: Sequence[RowPlan | None]) -> "ConceptText":
        """The text ``states [B, N, C]`` with B plans. Raises ``ValueError`` when there are more or fewer."""
        if states.ndim != 3 or len(states) != len(plans):
            raise ValueError(f"a text {tuple(states.shape)} with {len(plans)} plans: expected [B, N, C] and B plans")
        text = states.as_subclass(cls)
        text.plans = tuple(plans)
        return text

    @property
    def plain(self) -> Tensor:
        """The tensor alone."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # an attribute such as shape or device; .data is the same text
            same = isinstance(out, Tensor) and _is_text(out) and out.shape == args[0].plain.shape
            return cls.of(out, args[0].plans) if same else out
        if name in RULES:
            return RULES[name](out, args, kwargs)
        if name not in READS and any(map(_is_text, out if isinstance(out, list | tuple) else [out])):
            raise TypeError(
                f"{name} is not known for a text with concepts in it: it would lose what layers and regions read. Encode the text by "
                "a node of its own, or take the plain one before this step"
            )
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> "ConceptText":
        return ConceptText.of(copy.deepcopy(self.plain, memo), self.plans)  # plans never change


def plans_of(text: Tensor) -> tuple[RowPlan | None, ...]:
    """The plans of a text's rows; a plain one has none."""
    return text.plans if isinstance(text, ConceptText) else (None,) * len(text)


def plain(text: Tensor) -> Tensor:
    """The text's tensor without its plans."""
    return text.plain if isinstance(text, ConceptText) else text


def row_of(text: Tensor, row: int) -> ConceptText:
    """One row of a text, ``[1, N, C]``; of a text with a single row it is that one for every row."""
    row = row if len(text) > 1 else 0
    return ConceptText.of(plain(text)[row : row + 1], plans_of(text)[row : row + 1])


def states_in_layer(text: ConceptText, layer: int) -> Tensor:
    """Return what cross-attention layer number ``layer`` reads, ``[B, N, C]``."""
    if all(plan is None or plan.layers is None for plan in text.plans):
        return text.plain
    rows = [
        whole if plan is None or plan.layers is None else plan.layers[layer] for whole, plan in zip(text.plain, text.plans, strict=True)
    ]
    return torch.stack(rows)


# What operations do to plans. A rule gets what the tensor operation returned, its arguments and its keywords.


def _is_text(out: Any) -> bool:
    return isinstance(out, Tensor) and out.ndim == 3 and out.is_floating_point()


def _same(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> ConceptText:
    """Casts and copies: the plans follow to the device and type of the text."""
    if args[0].device == out.device and args[0].dtype == out.dtype:
        return ConceptText.of(out, args[0].plans)
    return ConceptText.of(out, [plan and plan.to(out.device, out.dtype) for plan in args[0].plans])


def _forgotten(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Zeros, ones and noise of a text's shape are plain: in every layer and region they are the same."""
    return out


def _unwritten(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Room of a text's shape, for ``copy_`` to fill."""
    return ConceptText.of(out, [None] * len(out)) if out.shape == args[0].shape else out


def _copied(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """``into.copy_(text)``."""
    into, text = args[0], args[1]
    if not isinstance(into, ConceptText):
        raise TypeError("copy_ of a text with concepts into a plain tensor would lose what layers and regions read: copy it with clone()")
    plans = plans_of(text) if len(text) == len(into) else plans_of(text)[:1] * len(into)
    into.plans = tuple(plan and plan.to(into.device, into.dtype) for plan in plans)
    return into


def _joined(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """``torch.cat`` of rows, or of texts behind each other."""
    texts = kwargs.get("tensors", args[0] if args else ())
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % 3
    if dim == 0:
        return ConceptText.of(out, [plan for text in texts for plan in plans_of(text)])
    if dim == 2:
        raise TypeError("cat along the channels of a text with concepts in it: its layers and regions would have others")
    return ConceptText.of(out, [_behind([row_of(text, b) for text in texts]) for b in range(len(out))])


def _behind(parts: Sequence[ConceptText]) -> RowPlan | None:
    """The plan of one row whose text is that of several parts, each behind the one before."""
    plans = [part.plans[0] for part in parts]
    if not any(plans):
        return None
    lengths = [part.shape[1] for part in parts]
    total = sum(lengths)

    def spread(mask: Tensor, number: int) -> Tensor:
        """A mask over the tokens of one part, over those of all: its own tokens lie behind those of the parts before."""
        before = sum(lengths[:number])
        return torch.nn.functional.pad(mask, (before, total - before - len(mask)))

    spreads = [partial(spread, number=number) for number in range(len(plans))]
    tokens = unite(plan.at_tokens(own, own) for plan, own in zip(plans, spreads, strict=True) if plan)
    regions = tuple(torch.cat(sides, 1) for sides in _regions_of(parts))
    return replace(tokens, layers=_layers(parts, lambda sides: torch.cat(sides, 1)), regions=regions)


def _layers(parts: Sequence[ConceptText], joined: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    """``joined`` of what the layers read of each part, ``[L, N, C]``; ``None`` if they all read the parts themselves."""
    layers = [part.plans[0].layers if part.plans[0] else None for part in parts]
    count = next((len(states) for states in layers if states is not None), 0)
    if not count:
        return None
    sides = [part.plain.expand(count, -1, -1) if own is None else own for part, own in zip(parts, layers, strict=True)]
    return joined(sides)


def _regions_of(parts: Sequence[ConceptText]) -> list[list[Tensor]]:
    """Region by region what each part reads there: its own text for that region, or, if it has none, itself.

    Raises ``ValueError`` for texts of different regions.
    """
    counts = {len(plan.regions) for part in parts if (plan := part.plans[0]) and plan.regions}
    if len(counts) > 1:
        raise ValueError(f"texts of {' and '.join(map(str, sorted(counts)))} regions cannot be one text: take texts of the same regions")
    count = next(iter(counts), 0)
    return [[plan.regions[u] if (plan := part.plans[0]) and plan.regions else part for part in parts] for u in range(count)]


def _tokens(text: Tensor, cut: Callable[[Tensor, int], Tensor]) -> list[RowPlan | None]:
    """The plans after ``cut(tensor, dim)`` of the tokens, which lie in that dimension."""

    def of(plan: RowPlan) -> RowPlan:
        regions = tuple(ConceptText.of(cut(plain(region), 1), _tokens(region, cut)) for region in plan.regions)
        return replace(_own_tokens(plan, cut), regions=regions)

    return [plan and of(plan) for plan in plans_of(text)]


def _own_tokens(plan: RowPlan, cut: Callable[[Tensor, int], Tensor]) -> RowPlan:
    """The plan after ``cut(tensor, dim)`` of its own tokens; the texts of regions stay."""
    return RowPlan(
        None if plan.layers is None else cut(plan.layers, 1),
        {name: cut(mask, 0) for name, mask in plan.token_masks.items()},
        tuple(replace(r, marks=cut(r.marks, 0)) for r in plan.residuals),
        plan.regions,
    )


def _repeated(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """``repeat(rows, copies of the tokens, 1)``, which hosts do to bring texts to one length: attention does not notice that a text is
    there several times, so those of regions need no copies, and the plan counts as the same in every step.
    """
    text, sizes = args[0], args[1:] if len(args) > 2 else args[1]
    if len(sizes) != 3:
        return out
    rows, times, _ = sizes

    def copies(tensor: Tensor, dim: int) -> Tensor:
        return torch.cat([tensor] * times, dim)

    plans = text.plans
    if times > 1:
        plans = tuple(plan and replace(_own_tokens(plan, copies), key=(plan.key, times)) for plan in plans)
    return ConceptText.of(out, plans * rows)


def _expanded(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    text = args[0]
    return ConceptText.of(out, text.plans if len(out) == len(text) else text.plans * len(out)) if out.ndim == 3 else out


def _indexed(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """``text[rows, tokens]``."""
    text, everything = args[0], slice(None)
    index: list[Any] = [*args[1]] if isinstance(args[1], tuple) else [args[1]]
    gap = next((n for n, i in enumerate(index) if i is Ellipsis), len(index))
    index[gap : gap + 1] = [everything] * (3 - len(index) + (gap < len(index)))
    rows, tokens, channels = index[:3]
    if isinstance(rows, int) and out.ndim == 2:
        raise TypeError(f"row {rows} of a text with concepts in it: take [{rows}:{rows + 1}], which keeps what its layers and regions read")
    if not _is_text(out) or channels != everything:
        return out
    plans = [text.plans[i] for i in torch.arange(len(text))[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()]
    chosen = ConceptText.of(text.plain[rows], plans)
    return ConceptText.of(out, _part(chosen, tokens))


def _part(text: ConceptText, tokens: Any) -> list[RowPlan | None]:
    """The plans of some tokens."""
    if isinstance(tokens, slice) and len(range(*tokens.indices(text.shape[1]))) == text.shape[1]:
        return [*text.plans]
    return _tokens(text, lambda t, d: t[(slice(None),) * d + (tokens,)])


def _single(out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``select`` and ``unbind``, which take the first dimension away."""
    if any(piece.ndim == 2 and piece.shape[0] == args[0].shape[1] for piece in (out if isinstance(out, list | tuple) else [out])):
        raise TypeError(
            "a single row of a text with concepts in it would lose what its layers and regions read: take it as text[i : i + 1]"
        )
    return out


def _narrowed(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """``narrow(dim, start, length)``."""
    text, dim, start, length = (*args, *kwargs.values())[:4]
    part = slice(start, start + length)
    return ConceptText.of(out, text.plans[part] if dim % 3 == 0 else _part(text, part))


def _selected(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """``index_select(dim, index)``."""
    text, dim, index = (*args, *kwargs.values())[:3]
    return ConceptText.of(out, [text.plans[i] for i in index.tolist()] if dim % 3 == 0 else _part(text, index))


def _split(out: Sequence[Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``chunk`` and ``split``."""
    text, dim = args[0], kwargs.get("dim", args[2] if len(args) > 2 else 0) % 3
    if dim == 2:
        return out
    parts, start = [], 0
    for piece in out:
        part = slice(start, start := start + piece.shape[dim])
        parts.append(ConceptText.of(piece, text.plans[part] if dim == 0 else _part(text, part)))
    return tuple(parts)


def _mixed(operation: Callable[..., Tensor], in_place: bool = False) -> Callable[..., Tensor]:
    """The rule of an elementwise operation, such as to add a text or to multiply by a number: it acts on each layer and region."""

    def rule(out: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        if not _is_text(out):
            return out
        mixed = ConceptText.of(args[0] if in_place else out, [_mixture(operation, args, kwargs, b) for b in range(len(out))])
        if in_place:
            args[0].plans = mixed.plans
            return args[0]
        return mixed

    return rule


def _mixture(operation: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any], row: int) -> RowPlan | None:
    """The plan of one row of ``operation(*args)``."""
    operands = [row_of(a, row) if isinstance(a, Tensor) and a.ndim == 3 else a for a in args]
    at = [i for i, o in enumerate(operands) if isinstance(o, ConceptText)]
    parts = [operands[i] for i in at]
    if not any(part.plans[0] for part in parts):
        return None

    def operated(sides: list[Tensor]) -> Tensor:
        placed = dict(zip(at, sides, strict=True))
        return operation(*(placed.get(i, o) for i, o in enumerate(operands)), **kwargs)

    shares = zip(parts, _shares(operation, operands, at), strict=True)
    tokens = unite(_scaled(plan, share) for part, share in shares if (plan := part.plans[0]))
    regions = tuple(_fitted(operated, sides) for sides in _regions_of(parts))
    return replace(tokens, layers=_layers(parts, operated), regions=regions)


def _scaled(plan: RowPlan, share: float) -> RowPlan:
    """Scale what a plan says of tokens whose text is multiplied by ``share``: concepts act no more than fully, residuals in proportion."""
    scaled = plan.at_tokens(lambda mask: mask * min(abs(share), 1.0), lambda marks: marks * share)
    return scaled if share else replace(scaled, residuals=())


def _fitted(operated: Callable[[list[Tensor]], Tensor], sides: Sequence[Tensor]) -> Tensor:
    """An operation on the texts of one region, cut or filled up with zeros to the length of the first one, as the host's average does."""
    length = sides[0].shape[1]
    fitted = []
    for side in sides:
        part = side[:, :length]
        missing = length - part.shape[1]
        fitted.append(torch.cat([part, torch.zeros_like(part[:, :1]).repeat(1, missing, 1)], 1) if missing and part.shape[1] > 1 else part)
    return operated(fitted)


def _shares(operation: Callable[..., Tensor], operands: Sequence[Any], at: Sequence[int]) -> list[float]:
    """How much of each text is in the result: the number that it is multiplied by."""
    numbers = [float(o) for o in operands if not isinstance(o, ConceptText) and (not isinstance(o, Tensor) or o.numel() == 1)]
    factor = numbers[0] if numbers else 1.0
    if operation is torch.mul and len(at) == 1 and numbers:
        return [factor]
    if operation is torch.div and len(at) == 1 and numbers:
        return [1 / factor if factor else 0.0]
    if operation is torch.lerp and len(at) == 2 and numbers:
        return [1 - factor, factor]
    return [1.0] * len(at)


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("to", "float", "half", "bfloat16", "double", "type", "cpu", "cuda", "contiguous", "clone", "detach", "pin_memory"), _same
    ),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty"), _forgotten),
    **dict.fromkeys(("cat", "concat", "concatenate"), _joined),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expanded),
    **dict.fromkeys(("chunk", "split", "tensor_split", "split_with_sizes"), _split),
    **dict.fromkeys(("select", "unbind"), _single),
    **dict.fromkeys(("add", "__add__", "__radd__"), _mixed(torch.add)),
    **dict.fromkeys(("sub", "subtract", "__sub__"), _mixed(torch.sub)),
    **dict.fromkeys(("rsub", "__rsub__"), _mixed(torch.rsub)),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), _mixed(torch.mul)),
    **dict.fromkeys(("div", "true_divide", "divide", "__truediv__"), _mixed(torch.div)),
    **dict.fromkeys(("add_", "__iadd__"), _mixed(torch.add, in_place=True)),
    **dict.fromkeys(("mul_", "__imul__"), _mixed(torch.mul, in_place=True)),
    "lerp": _mixed(torch.lerp),
    "empty_like": _unwritten,
    "copy_": _copied,
    "repeat": _repeated,
    "__getitem__": _indexed,
    "narrow": _narrowed,
    "index_select": _selected,
}
# What computes with the numbers of a text rather than making another text of it.
READS = frozenset(
    (
        "linear", "matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "addmm", "addbmm", "einsum", "mm", "layer_norm",
        "group_norm", "rms_norm", "normalize", "cosine_similarity", "scaled_dot_product_attention", "softmax", "conv1d", "mean",
        "sum", "std", "var", "norm", "vector_norm", "amax", "amin", "max", "min", "abs", "square", "pow", "__pow__", "reshape",
        "view", "flatten", "unflatten", "permute", "transpose", "movedim", "swapaxes", "mT", "T", "unsqueeze", "squeeze",
        "as_subclass", "as_strided", "requires_grad_", "numpy", "view_as", "reshape_as",
    )
)  # fmt: skip
