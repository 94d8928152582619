"""Backbones outside ComfyUI."""
