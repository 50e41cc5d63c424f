"""Spatial-temporal attention for text-to-image diffusion models (arXiv 2304.03869)."""

__version__ = "0.1.0"
