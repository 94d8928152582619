"""The methods of learning by name. A method that is registered can be trained from the command line and by nodes, and is tested."""

from typing import Any

from ...models.family import Family
from ..config import TrainingConfig
from ..method import Method
from .cidm import Cidm
from .clif import Clif
from .disendiff import DisenDiff
from .infusion import Infusion
from .lora import Lora

METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Makes a method known by its name."""
    METHODS[method.name] = method
    return method


def method_named(name: str) -> Method:
    """Returns the method of a name. Raises ``ValueError`` for one that is not registered."""
    if name not in METHODS:
        raise ValueError(f"method {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]


def method_of(config: TrainingConfig) -> Method:
    """Returns the method that a configuration is for. Raises ``ValueError`` if none is registered for it."""
    for method in METHODS.values():
        if type(config.method) is method.config:
            return method
    raise ValueError(f"{type(config.method).__name__} belongs to no method: expected the settings of one of {', '.join(METHODS)}")


def configure(name: str, /, **settings: Any) -> TrainingConfig:
    """Returns the configuration of a method with its own defaults but for ``settings``, those of the loop and of the method alike.

    Raises ``ValueError`` for an unknown method and naming the setting that it does not have or that cannot work.
    """
    method = method_named(name)
    return TrainingConfig(method=method.config(), **method.defaults).update(**settings)


def configure_for(family: Family, name: str, /, **settings: Any) -> TrainingConfig:
    """Returns the configuration of a method that suits models of a family, but for ``settings``. Raises what ``configure`` does."""
    return configure(name, **{**family.recipes.get(name, {}), **settings})


register(Cidm())
register(Infusion())
register(DisenDiff())
register(Clif())
register(Lora())
