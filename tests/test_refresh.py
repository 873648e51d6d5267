"""What was just installed is usable in the running process, or the verdict says why not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sd3deploy.refresh import Verdict, guards, private, refresh
from sd3deploy.refresh.package import read_package, same_version
from tests import stacks

# --- the real packages -------------------------------------------------------------------------------------------------


PACKAGES = {"current": ["accelerate", "peft", "sentencepiece", "bitsandbytes", "gguf"], "older": ["sentencepiece", "bitsandbytes"]}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The real processes run side by side, each in its own environment; each takes half a minute of one core."""
    folder = tmp_path_factory.mktemp("refresh")
    model = stacks.model(folder / "model")

    def stack(name: str) -> stacks.Result:
        python = getattr(stacks, name)(folder / name, without=PACKAGES[name])
        return stacks.script(python, "stack.py", model, *[f"{package}=={stacks.PINS[package]}" for package in PACKAGES[name]])

    def swap() -> stacks.Result:
        return stacks.script(stacks.copied(folder / "swap", ["numpy"]), "swap.py", "1.26.4")

    with ThreadPoolExecutor() as pool:
        running = {name: pool.submit(stack, name) for name in PACKAGES} | {"swap": pool.submit(swap)}
        yield running


@pytest.mark.parametrize("stack", PACKAGES)
def test_every_package_becomes_usable_without_a_restart(processes, stack):
    """Each use fails as it does today, still fails after pip, and works after `refresh`; no class changes its identity."""
    output = stacks.passed(processes[stack].result())
    assert output.count("refresh ") == len(PACKAGES[stack]), output


def test_numpy_replaced_under_a_running_process_asks_for_a_restart(processes):
    stacks.passed(processes["swap"].result())


# --- the table of private names ----------------------------------------------------------------------------------------


def _source_of(module: str) -> str:
    """The source of a module of an installed library, without importing the library."""
    library, _, rest = module.partition(".")
    spec = importlib.util.find_spec(library)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent.joinpath(*rest.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path.read_text(encoding="utf-8")


def test_private_names_are_those_of_the_installed_versions():
    """A release that renames one is noticed here, before a user is."""
    names = [*private.PACKAGE_MAPS, private.TOKENIZER_NAMES, private.MISSING_BACKENDS[1:]]
    for module, *tables in private.VERSION_TABLES:
        names += [(module, table) for table in tables]
    for module, name in names:
        assert re.search(rf"^\s*{name}\b.*=", _source_of(module), re.M), f"{module}.{name}"
    assert f"self.{private.MISSING_BACKENDS[0]} = " in _source_of("transformers.utils.import_utils")
    for name in private.STRUCTURE:
        assert re.search(rf"self\.{name}\b", _source_of("diffusers.utils.import_utils")), name
    holder, method = private.METADATA_CACHE
    assert getattr(getattr(importlib.metadata, holder), method).cache_clear


def test_private_names_were_verified_on_the_stacks_of_the_tests():
    for library, version in stacks.OLDER.items():
        assert version in private.VERIFIED[library]
    for library, versions in private.VERIFIED.items():
        installed = importlib.metadata.version(library)
        if installed not in versions:
            warnings.warn(f"{library} {installed}: the private names of sd3deploy.refresh were verified on {versions}", stacklevel=1)


# --- verdicts, on invented distributions -------------------------------------------------------------------------------


class Site:
    """A folder of invented distributions that is on sys.path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, version: str, files: dict[str, str]) -> None:
        name = name.replace("-", "_")
        for path, text in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)
        for old in self.folder.glob(f"{name}-*.dist-info"):
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    # Python trusts a compiled file whose source has the same time and size: a test rewrites sources within one tick.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if name.startswith("fake"):
            del sys.modules[name]


def _module(name: str) -> types.ModuleType:
    return importlib.import_module(name)


def test_a_new_package_is_imported(site):
    with pytest.raises(ImportError):
        _module("fake_new")
    site.install("fake-new", "1.0", {"fake_new/__init__.py": "__version__ = '1.0'"})
    verdict = refresh(["Fake_New"])
    assert verdict == Verdict(("fake-new",), (), verdict.seconds, verdict.steps)
    assert verdict.ok
    assert sys.modules["fake_new"].__version__ == "1.0"


def test_an_install_within_the_tick_of_the_file_system_is_seen(site):
    """A folder whose time stamp did not change: importlib.metadata would answer from its listing."""
    stamp = (1_700_000_000, 1_700_000_000)
    os.utime(site.folder, stamp)
    assert read_package("fake-tick").version == ""
    site.install("fake-tick", "1.0", {"fake_tick/__init__.py": ""})
    os.utime(site.folder, stamp)
    assert refresh(["fake-tick"]).refreshed == ("fake-tick",)


def test_a_package_in_use_that_was_replaced_asks_for_a_restart_and_stays(site):
    site.install("fake_used", "1.0", {"fake_used/__init__.py": "__version__ = '1.0'"})
    used = _module("fake_used")
    site.install("fake_used", "2.0", {"fake_used/__init__.py": "__version__ = '2.0'"})
    verdict = refresh(["fake_used"])
    (entry,) = verdict.restart
    assert (entry.name, entry.loaded, entry.on_disk) == ("fake-used", "1.0", "2.0")
    assert "1.0" in entry.reason
    assert "2.0" in entry.reason
    assert verdict.refreshed == ()
    assert sys.modules["fake_used"] is used


def test_a_package_in_use_that_was_removed_asks_for_a_restart(site):
    site.install("fake_gone", "1.0", {"fake_gone/__init__.py": "__version__ = '1.0'"})
    _module("fake_gone")
    site.install("fake_gone", "1.0", {})
    (site.folder / "fake_gone-1.0.dist-info" / "METADATA").unlink()
    (site.folder / "fake_gone-1.0.dist-info" / "RECORD").unlink()
    (site.folder / "fake_gone-1.0.dist-info").rmdir()
    (entry,) = refresh(["fake_gone"]).restart
    assert entry.on_disk == ""
    assert "removed" in entry.reason


def test_without_a_version_in_memory_the_code_decides(site):
    """gguf has no __version__, and the host itself may have installed and imported it a moment ago."""
    files = {"fake_mute/__init__.py": "from fake_mute.inner import size", "fake_mute/inner.py": "def size():\n    return 1\n"}
    site.install("fake_mute", "1.0", files)
    _module("fake_mute")
    assert refresh(["fake_mute"]).ok
    site.install("fake_mute", "1.1", files | {"fake_mute/inner.py": "def size():\n    return 1 + 1\n"})
    assert not refresh(["fake_mute"]).ok


def test_an_import_that_fails_is_told_and_changes_no_flag(site):
    site.install("fake_broken", "1.0", {"fake_broken/__init__.py": "raise OSError('libfake.so: no such file')"})
    verdict = refresh(["fake_broken"])
    assert verdict.refreshed == ()
    assert "libfake.so" in verdict.restart[0].reason
    site.install("fake_broken", "1.1", {"fake_broken/__init__.py": ""})
    assert refresh(["fake_broken"]).ok, "a repaired package needs no restart"


def test_operators_that_outlive_a_failed_import_ask_for_a_restart(site):
    message = "Tried to register an operator (fake::gemm) with the same name and the same overload name multiple times."
    site.install("fake_native", "1.0", {"fake_native/__init__.py": f"raise RuntimeError({message!r})"})
    (entry,) = refresh(["fake_native"]).restart
    assert "native operators" in entry.reason


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells which files are mapped")
def test_a_native_library_that_outlives_a_failed_import_asks_for_a_restart(site):
    """The loader goes by the path: a new import would get the old library."""
    native = Path(importlib.import_module("_ctypes").__file__ or "")
    files = {"fake_lib/__init__.py": "import ctypes\nctypes.CDLL(__path__[0] + '/lib.so')\nraise ValueError(1)"}
    site.install("fake_lib", "1.0", files)
    shutil.copy(native, site.folder / "fake_lib" / "lib.so")
    with pytest.raises(ValueError, match="1"):
        _module("fake_lib")
    shutil.move(site.folder / "fake_lib", site.folder / "~ake_lib")
    shutil.rmtree(site.folder / "~ake_lib")
    site.install("fake_lib", "1.1", {"fake_lib/__init__.py": ""})
    (entry,) = refresh(["fake_lib"]).restart
    assert "native library" in entry.reason
    assert "fake_lib" not in sys.modules


def test_a_package_that_lacks_its_own_dependency_names_it(site):
    site.install("fake_needy", "1.0", {"fake_needy/__init__.py": "import fake_absent.part"})
    (entry,) = refresh(["fake_needy"]).restart
    assert "fake_absent" in entry.reason
    assert "Install" in entry.reason


def test_residue_of_a_failed_import_is_swept(site):
    site.install(
        "fake_half", "1.0", {"fake_half/__init__.py": "import fake_half.first\nraise ValueError(1)", "fake_half/first.py": "old = True"}
    )
    with pytest.raises(ValueError, match="1"):
        _module("fake_half")
    assert "fake_half.first" in sys.modules
    site.install("fake_half", "1.1", {"fake_half/__init__.py": "from fake_half.first import new", "fake_half/first.py": "new = True"})
    assert refresh(["fake_half"]).ok
    assert sys.modules["fake_half"].new


def test_a_module_that_is_none_and_a_leftover_folder_are_no_package(site, monkeypatch):
    (site.folder / "fake_empty").mkdir()
    holder = types.ModuleType("modules.fake_holder")
    monkeypatch.setitem(sys.modules, "modules.fake_holder", holder)
    holder.empty = _module("fake_empty")
    sys.modules["fake_none"] = None  # type: ignore[assignment]
    site.install("fake_empty", "1.0", {"fake_empty/__init__.py": "full = True"})
    site.install("fake_none", "1.0", {"fake_none/__init__.py": "full = True"})
    assert refresh(["fake_empty", "fake_none"]).ok
    assert sys.modules["fake_none"].full
    assert holder.empty.full, "who held the namespace holds the package"


def test_what_is_not_installed_needs_no_restart():
    verdict = refresh(["fake-nowhere"])
    assert verdict.ok
    assert verdict.refreshed == ()
    assert "fake-nowhere: not installed" in verdict.steps


def test_import_names_come_from_the_files_of_the_distribution(site):
    site.install("fake-optimum-quanto", "1.0", {"fake/optimum/quanto/__init__.py": "", "test/__init__.py": "", "bench/__init__.py": ""})
    assert read_package("fake-optimum-quanto").imports == ("fake.optimum.quanto",)
    site.install(
        "fake-pillow", "1.0", {"FakePIL/__init__.py": "", "FakePIL/sub/__init__.py": "", "tests/__init__.py": "", "json/__init__.py": ""}
    )
    assert read_package("fake-pillow").imports == ("FakePIL",)


@pytest.mark.parametrize(
    ("loaded", "on_disk", "same"),
    [
        ("2.13.0+cpu", "2.13.0", True),
        ("2.13.0+cpu", "2.13.0+cu130", False),
        ("1.0", "1.0.0", True),
        ("2.1.2", "1.26.4", False),
        ("dev", "dev", True),
    ],
)
def test_versions(loaded, on_disk, same):
    assert same_version(loaded, on_disk) is same


# --- statements that were skipped --------------------------------------------------------------------------------------

LIBRARY = {
    "fakelib/__init__.py": "__version__ = '1.0'",
    "fakelib/checks.py": """
import functools, importlib.util

def there(name):
    return importlib.util.find_spec(name) is not None, "1.0"

@functools.lru_cache
def is_fakepkg_available():
    return there("fakepkg")[0]

_fakepkg_available, _fakepkg_version = there("fakepkg")
_other_available, _other_version = False, "N/A"
USE_FAKEPKG = _fakepkg_available
CAN_FLY = is_fakepkg_available() and True
""",
    "fakelib/user.py": """
from fakelib.checks import USE_FAKEPKG, CAN_FLY, is_fakepkg_available, _other_available

if is_fakepkg_available():
    import fakepkg
    from fakepkg import tool

    class Uses:
        pass
else:
    tool = None

if True:
    class Base:
        pass
    if is_fakepkg_available():
        from fakepkg import tool as nested

if is_fakepkg_available():
    from fakepkg import tool as patched

if _other_available:
    raise AssertionError("not ours")
""",
}


def test_flags_and_guarded_imports_are_brought_up_to_date(site):
    site.install("fakelib", "1.0", LIBRARY)
    user, checks = _module("fakelib.user"), _module("fakelib.checks")
    base = user.Base
    user.patched = patch = object()  # the host patches libraries; that must survive
    site.install("fakepkg", "1.0", {"fakepkg/__init__.py": "def tool(): return 1"})
    importlib.invalidate_caches()
    steps = guards.replay([read_package("fakepkg")], ("fakelib",))
    assert not [step for step in steps if "failed" in step]
    assert (checks._fakepkg_available, checks._fakepkg_version, checks.USE_FAKEPKG) == (True, "1.0", True)
    assert (checks._other_available, checks._other_version) == (False, "N/A")
    assert checks.is_fakepkg_available()
    assert user.USE_FAKEPKG is True
    assert user.CAN_FLY is True, "a copy of a flag made by from … import"
    assert user.tool() == user.nested() == user.fakepkg.tool() == 1
    assert user.Base is base
    assert user.patched is patch
    uses = user.Uses
    assert guards.replay([read_package("fakepkg")], ("fakelib",)) == []
    assert user.Uses is uses


def test_a_library_replaced_on_disk_is_not_corrected_by_its_new_files(site, monkeypatch):
    site.install("fakelib", "1.0", LIBRARY)
    user = _module("fakelib.user")
    monkeypatch.setattr("sd3deploy.refresh.verdict.LIBRARIES", ("fakelib",))
    site.install("fakelib", "2.0", LIBRARY)
    site.install("fakepkg", "1.0", {"fakepkg/__init__.py": "def tool(): return 1"})
    verdict = refresh(["fakepkg"])
    assert [entry.name for entry in verdict.restart] == ["fakelib"]
    assert user.tool is None


def test_importing_it_needs_nothing_heavy():
    code = "import sys, sd3deploy.refresh; print([m for m in ('torch', 'transformers', 'diffusers', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=stacks.ROOT)
    assert result.stdout.strip() == "[]", result.stderr
