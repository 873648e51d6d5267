"""The table of names that moved can be read, and is right about what is installed here."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd3deploy.diagnosis import names
from sd3deploy.diagnosis.installed import STACK
from sd3deploy.diagnosis.names import NAMES
from sd3deploy.vendored import SpecifierSet, canonicalize_name

# The module that a name is imported from; where nothing is said: the package itself.
TOPS = {"huggingface-hub": "huggingface_hub", "bitsandbytes": "bitsandbytes.nn", "pillow": "PIL.Image", "protobuf": "google.protobuf"}
MODULES = {
    ("transformers", "FLAX_WEIGHTS_NAME"): "transformers.utils",
    ("accelerate", "clear_device_cache"): "accelerate.utils.memory",
    ("diffusers", "stable_diffusion_3"): "diffusers.pipelines",
    ("torch", "custom_op"): "torch.library",
    ("torch", "register_autograd"): "torch.library",
    ("torch", "register_fake"): "torch.library",
    ("torch", "RMSNorm"): "torch.nn",
    ("torch", "attention"): "torch.nn",
    ("torch", "flex_attention"): "torch.nn.attention",
    ("pydantic", "Undefined"): "pydantic.fields",
    ("pydantic", "ModelField"): "pydantic.fields",
    ("protobuf", "builder"): "google.protobuf.internal",
    ("torchvision", "functional_tensor"): "torchvision.transforms",
}

# As `from module import name` does. A module that is gone altogether is a mistake here: all of these outlive their names.
LOOK = """
import importlib, importlib.util, json, sys

def there(module, name):
    owner = importlib.import_module(module)
    try:
        getattr(owner, name)
    except (AttributeError, ImportError):  # pydantic 2 raises an ImportError of its own for what it has dropped
        return hasattr(owner, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None
    return True

json.dump([there(module, name) for module, name in json.loads(sys.argv[1])], sys.__stdout__)
"""


def version(distribution):
    """What is installed, None where it is not."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def module(entry):
    return MODULES.get(entry) or TOPS.get(entry[0], entry[0])


def has(versions, one):
    return SpecifierSet(versions).contains(one, prereleases=True)


@pytest.fixture(scope="module")
def found():
    """Which names can be imported here: looked up in a process of its own, so that no other test finds these packages loaded."""
    entries = [entry for entry in NAMES if version(entry[0])]
    places = json.dumps([(module(entry), entry[1]) for entry in entries])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", LOOK, places]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(entries, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("entry", [entry for entry in NAMES if version(entry[0])], ids=".".join)
def test_the_table_is_right_about_what_is_installed(entry, found):
    there = version(entry[0])
    assert found[entry] is has(NAMES[entry], there), f"{module(entry)}.{entry[1]} in {there}"


@pytest.mark.parametrize("entry", NAMES, ids=".".join)
def test_an_entry_can_be_found_and_read(entry):
    distribution, name = entry
    assert distribution == canonicalize_name(distribution)
    assert distribution in STACK
    assert name.isidentifier()
    bounds = [specifier.version.removesuffix(".*") for specifier in SpecifierSet(NAMES[entry])]
    answers = {has(NAMES[entry], one) for one in ("0.0.1", *bounds, "9999")}
    assert answers == {True, False}  # else there is nothing to say


@pytest.mark.parametrize("entry", NAMES, ids=".".join)
def test_an_entry_names_the_newest_or_the_oldest_version(entry):
    """Names are there from a version on, or until one: what `cure` tells apart by the oldest version."""
    assert has(NAMES[entry], "0.0.1") or has(NAMES[entry], "9999")


def test_versions_with_something_after_the_number_are_compared():
    """torch says what it was built for; the host may bring diffusers from before a release."""
    assert has(NAMES["torch", "custom_op"], "2.13.0+cpu")
    assert not has(NAMES["torch", "custom_op"], "2.3.1+cu121")
    assert has(NAMES["diffusers", "PipelineQuantizationConfig"], "0.36.0.dev0")
    assert [has(NAMES["numpy", "bool"], one) for one in ("1.23.5", "1.24.0", "1.26.4", "2.0.0")] == [True, False, False, True]


def test_no_entry_stands_there_twice():
    """Python takes the last one and keeps quiet."""
    tree = ast.parse(Path(names.__file__).read_text(encoding="utf-8"))
    table = next(node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    keys = [ast.literal_eval(key) for key in table.keys if key is not None]
    assert len(keys) == len(set(keys)) == len(NAMES)


def test_each_module_belongs_to_an_entry():
    assert set(MODULES) <= set(NAMES)
    assert set(TOPS) <= {distribution for distribution, _ in NAMES}
