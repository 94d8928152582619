"""The small models that every method is tested on."""

from headless.conftest import tiny_chroma, tiny_flux1, tiny_flux2, tiny_lumina2, tiny_qwenimage, tiny_sd1, tiny_sd3, tiny_sdxl, tiny_zimage  # noqa: F401
