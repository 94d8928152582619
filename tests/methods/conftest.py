"""The small models that every method is tested on."""

from headless.conftest import tiny_sd1, tiny_sdxl  # noqa: F401
