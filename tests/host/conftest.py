from comfy_server import server  # noqa: F401
