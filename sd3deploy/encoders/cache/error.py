"""The error of the cache."""

from __future__ import annotations

from sd3deploy.errors import EncoderError

__all__ = ["CacheError"]


class CacheError(EncoderError):
    """A quantized encoder can not be kept on disk. The encoder itself is not touched by that."""
