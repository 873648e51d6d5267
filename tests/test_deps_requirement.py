"""pyproject.toml is the only truth about what is needed."""

import subprocess
import sys

import pytest

from sd3deploy import deps
from sd3deploy.errors import DependencyError
from sd3deploy.installed import import_name
from sd3deploy.vendored import canonicalize_name
from tests.deps_lab import ROOT


def test_core_then_groups():
    core = deps.requirements()
    both = deps.requirements(("bitsandbytes",))
    assert [one.name for one in core] == ["accelerate", "sentencepiece", "protobuf", "packaging"]
    assert both[: len(core)] == core
    assert both[len(core) :] == (deps.Requirement("bitsandbytes", ">=0.48", "bitsandbytes"),)


def test_unknown_group_is_our_bug():
    with pytest.raises(KeyError):
        deps.requirements(("requests; from a prompt",))


def test_nothing_of_the_host_is_among_our_requirements():
    ours = {canonicalize_name(one.name) for one in deps.requirements(("bitsandbytes",))}
    assert {"torch", "numpy", "pillow", "huggingface-hub"} <= deps.host_packages()
    assert not ours & deps.host_packages()


@pytest.mark.parametrize(
    ("name", "module"), [("protobuf", "google.protobuf"), ("Pillow", "PIL"), ("optimum-quanto", "optimum.quanto"), ("hf-xet", "hf_xet")]
)
def test_import_names(name, module):
    assert import_name(name) == module


@pytest.mark.parametrize("blocked", [["tomllib"], ["tomllib", "packaging"]])
def test_reads_pyproject_without_the_newer_libraries(blocked):
    """Python 3.10 has no tomllib; the first start may have no packaging; pip has both inside."""
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    code = f"import sys\n{block}from sd3deploy import deps\nprint(deps.requirements()[0].name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "accelerate", done.stderr


def test_import_is_light():
    """At import only the standard library and packaging."""
    code = "import sys\nfrom sd3deploy import deps\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.split())
    assert loaded - set(sys.stdlib_module_names) - {"__main__"} <= {"sd3deploy", "packaging", "sitecustomize", "_distutils_hack"}


def test_nothing_but_the_hosts_packages_and_ours_is_repaired():
    with pytest.raises(DependencyError) as caught:
        deps.repair("pluggy")
    assert caught.value.id == "repair.not_ours"
    for healthy in ("NumPy", "accelerate"):
        assert deps.repair(healthy).changed == {}
