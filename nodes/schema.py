"""What a node declares, on every version of the host, and what is known to be wrong before a run."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

FOUND_BY_ALIASES = any(field.name == "search_aliases" for field in fields(io.Schema))  # not at the floor


def schema(aliases: str, **declared: Any) -> io.Schema:
    """Return the schema of a node, which the node search also finds by ``aliases``: words that people use for it, with commas between."""
    if FOUND_BY_ALIASES:
        declared["search_aliases"] = [alias.strip() for alias in aliases.split(",")]
    return io.Schema(**declared)


def validate(check: Callable[..., Any], *values: Any) -> bool | str:
    """Return what a check raises of a node's inputs, for ``validate_inputs``; ``True`` where it raises nothing. A linked input is ``None``
    there and not known yet.
    """
    if any(value is None for value in values):
        return True
    try:
        check(*values)
    except (ValueError, OSError) as error:
        return str(error)
    return True
