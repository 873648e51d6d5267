"""Stable Diffusion 3.x in SD.Next that works the first time. Importing this package costs nothing: standard library only."""

__version__ = "0.1.0"
__all__ = ["__version__"]
