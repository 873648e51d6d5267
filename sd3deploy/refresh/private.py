"""Every name of other software that has no public way in, in one place.

A name that a version lacks is passed over. tests/test_refresh.py holds this table against the installed versions, so that a
release that renames one is noticed.
"""

from __future__ import annotations

__all__ = [
    "ALIASES",
    "HOST_FLAGS",
    "HOST_ROOTS",
    "LIBRARIES",
    "METADATA_CACHE",
    "MISSING_BACKENDS",
    "PACKAGE_MAPS",
    "STRUCTURE",
    "TOKENIZER_NAMES",
    "VERIFIED",
    "VERSION_TABLES",
]

# The versions on which every case of tests/no_restart passed, on Python 3.11.
VERIFIED = {
    "transformers": ("5.13.0", "4.57.6"),
    "diffusers": ("0.39.0", "0.36.0"),
    "huggingface_hub": ("1.23.0", "0.36.2"),
    "accelerate": ("1.14.0",),
    "peft": ("0.19.1",),
}

# The libraries that remember what is installed. The order is that of their imports: flags of one may use another.
LIBRARIES = ("huggingface_hub", "accelerate", "transformers", "peft", "diffusers")

# Top-level names of the host's own modules, which may hold copies of a library's flags and placeholders.
HOST_ROOTS = ("modules", "pipelines")

# Other names under which the libraries speak of a distribution, beside its own and those that it is imported by.
ALIASES = {"bitsandbytes": ("bnb",)}

# The host's own note of a failed import at start (module, name) → distribution.
HOST_FLAGS = {("modules.loader", "_bnb"): "bitsandbytes"}

# importlib.metadata keeps folder listings here; up to Python 3.12.1 invalidate_caches() does not reach it (gh-116811).
METADATA_CACHE = ("FastPath", "__new__")

# Snapshots of importlib.metadata.packages_distributions(), taken once at import.
PACKAGE_MAPS = (("transformers.utils.import_utils", "PACKAGE_DISTRIBUTION_MAPPING"), ("diffusers.utils.import_utils", "_package_map"))

# (module, version by candidate, candidate → names of distributions), filled by a loop at import.
VERSION_TABLES = (("huggingface_hub.utils._runtime", "_package_versions", "_CANDIDATES"),)

# transformers: lazy modules list here what they replace by a placeholder, checks are in BACKENDS_MAPPING.
MISSING_BACKENDS = ("_object_missing_backend", "transformers.utils.import_utils", "BACKENDS_MAPPING")

# diffusers (and transformers 4): the tables of a lazy module, all computed by the package's __init__.py.
STRUCTURE = ("_import_structure", "_class_to_module", "_modules", "_objects", "__all__")

# Names of tokenizer classes by model, with None where sentencepiece was absent; a lazy mapping keeps a reference to it.
TOKENIZER_NAMES = ("transformers.models.auto.tokenization_auto", "TOKENIZER_MAPPING_NAMES")
