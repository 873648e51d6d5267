"""Every name of other software that has no public way in, in one place.

A name that a version lacks is passed over: the questions at the end of a refresh (see consumers.py) decide whether it was needed.
"""

from __future__ import annotations

__all__ = ["ALIASES", "LIBRARIES", "METADATA_CACHE", "MISSING_BACKENDS", "PACKAGE_MAP", "VERIFIED"]

# The versions on which every case of tests/no_restart passed, on Python 3.11.
VERIFIED = {
    "transformers": ("5.24.0", "5.13.0", "4.57.6"),
    "diffusers": ("0.42.1", "0.39.0", "0.36.0"),
    "huggingface_hub": ("2.4.0", "1.23.0", "0.36.2"),
    "accelerate": ("1.15.0", "1.14.0"),
    "peft": ("0.21.2", "0.19.1"),
}

# The model stack: the libraries that remember what is installed. The order is that of their imports: flags of one may use another.
LIBRARIES = ("huggingface_hub", "accelerate", "transformers", "peft", "diffusers")

# Other names under which the libraries speak of a distribution, beside its own and those that it is imported by.
ALIASES = {"bitsandbytes": ("bnb",)}

# importlib.metadata keeps folder listings here; up to Python 3.12.1 invalidate_caches() does not reach it (gh-116811).
METADATA_CACHE = ("FastPath", "__new__")

# A snapshot of importlib.metadata.packages_distributions(), taken once at import; gguf has no version for it without. Gone in 5.24.
PACKAGE_MAP = ("transformers.utils.import_utils", "PACKAGE_DISTRIBUTION_MAPPING")

# transformers: lazy modules list here what they replace by a placeholder, checks are in BACKENDS_MAPPING.
MISSING_BACKENDS = ("_object_missing_backend", "transformers.utils.import_utils", "BACKENDS_MAPPING")
