"""All model families that this version knows."""

from functools import cache

from .architecture import Architecture
from .family import Family

_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known. Raises ``ValueError`` if another one has its architecture."""
    known = _FAMILIES.setdefault(family.architecture, family)
    if known is not family:
        raise ValueError(f"{family.title} and {known.title} have the same architecture {family.architecture}: give each its own")
    _family_of.cache_clear()
    return family


def forget(family: Family) -> None:
    """Take a family back, as a test does that made it up."""
    _FAMILIES.pop(family.architecture, None)
    _family_of.cache_clear()


def families() -> tuple[Family, ...]:
    """All known families, those of a name together in the order of their registration."""
    return tuple(_FAMILIES.values())


def family_of(architecture: str) -> Family:
    """The family of a model or a concept: the one of exactly this size, else the first of its name.

    Raises ``ValueError`` for a family that this version does not know.
    """
    return _family_of(architecture)


@cache
def _family_of(architecture: str) -> Family:
    if architecture in _FAMILIES:
        return _FAMILIES[architecture]
    name = Architecture.parse(architecture).family
    found = next((f for f in _FAMILIES.values() if f.name == name), None)
    if found is None:
        names = dict.fromkeys(f.name for f in _FAMILIES.values())
        raise ValueError(f"{architecture} is a model family that this version does not know, it knows {', '.join(names)}: update the pack")
    return found
