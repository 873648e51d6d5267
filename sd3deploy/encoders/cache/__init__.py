"""Quantized encoders on disk: what takes minutes to make is made once, and then loaded as fast as the disk reads.

cache.py       the folder as a whole: find, store, clear, verify
entry.py       one encoder: model.safetensors, config.json, manifest.json
journal.py     an encoder in the making, which outlives a restart
unfinished.py  what interrupted loads have left
manifest.py    what an encoder was made of, and the proof that it is whole
tensors.py     the file with the tensors
writing.py     new entries, whole or not at all
"""

from sd3deploy.encoders.cache.cache import DEFAULT_LIMIT, Cache, folder_for, limit_for
from sd3deploy.encoders.cache.entry import Entry
from sd3deploy.encoders.cache.error import CacheError
from sd3deploy.encoders.cache.writing import export

__all__ = ["DEFAULT_LIMIT", "Cache", "CacheError", "Entry", "export", "folder_for", "limit_for"]
