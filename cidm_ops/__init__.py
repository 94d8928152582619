"""CIDM: concepts learned one after another, painted together. A notebook takes what it needs from here; see docs/python.md."""

from typing import Any

__all__ = ["Bank", "Concept", "SamplingConfig", "configure", "evaluate", "generate", "load", "train"]


def __getattr__(name: str) -> Any:
    """Public names, loaded when they are asked for: the host loads this package without what only a notebook needs."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "Bank":
        from .bank.bank import Bank

        return Bank
    if name == "Concept":
        from .bank.concept import Concept

        return Concept
    from . import notebook

    return getattr(notebook, name)
