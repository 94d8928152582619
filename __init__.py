"""CIDM for ComfyUI: teach a model one concept after another and paint them together."""

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """What ComfyUI asks for. Imported here, so that tools may import the folder without a host."""
    from .nodes import CIDM

    return CIDM()
