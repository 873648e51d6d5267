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
from packaging.version import Version

from sd3deploy import loaded
from sd3deploy.errors import DependencyError, RestartRequired
from sd3deploy.refresh import Verdict, caches, imports, private, refresh
from sd3deploy.refresh.package import Package, read_package
from sd3deploy.vendored import same_version
from tests import stacks

# --- the real packages -------------------------------------------------------------------------------------------------


PACKAGES = {
    "current": ["accelerate", "peft", "sentencepiece", "bitsandbytes", "gguf"],
    "older": ["sentencepiece", "bitsandbytes", "gguf"],
    "newer": ["accelerate", "peft", "sentencepiece", "bitsandbytes", "gguf"],
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The real processes run side by side, each in its own environment; each takes half a minute of one core."""
    folder = tmp_path_factory.mktemp("refresh")
    model = stacks.model(folder / "model")

    def stack(name: str) -> stacks.Result:
        python = getattr(stacks, name)(folder / name, without=PACKAGES[name])
        pins = stacks.PINS | (stacks.NEWER if name == "newer" else {})
        return stacks.script(python, "stack.py", model, *[f"{package}=={pins[package]}" for package in PACKAGES[name]])

    def ours() -> stacks.Result:
        python = stacks.current(folder / "ours", without=["bitsandbytes"])
        return stacks.script(python, "ours.py", model, f"bitsandbytes=={stacks.PINS['bitsandbytes']}")

    def swap() -> stacks.Result:
        return stacks.script(stacks.copied(folder / "swap", ["numpy"]), "swap.py", "1.26.4")

    with ThreadPoolExecutor() as pool:
        running = {name: pool.submit(stack, name) for name in PACKAGES} | {"ours": pool.submit(ours), "swap": pool.submit(swap)}
        yield running


@pytest.mark.parametrize("stack", PACKAGES)
def test_every_package_becomes_usable_without_a_restart(processes, stack):
    """Each use fails as it does today, still fails after pip, and works after `refresh`; no class changes its identity. Of peft, which
    diffusers would need a new process for, exactly that is said.
    """
    output = stacks.passed(processes[stack].result())
    assert output.count("refresh ") == len(PACKAGES[stack]), output


def test_our_own_encoders_need_no_refresh_of_the_libraries(processes):
    stacks.passed(processes["ours"].result())


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


def test_a_new_package_is_entered_into_the_table_of_transformers(monkeypatch):
    from transformers.utils import import_utils

    known = importlib.metadata.packages_distributions()  # as transformers fills it, where it has one: see private.PACKAGE_MAP
    table = {top: list(owners) for top, owners in known.items() if top != "bitsandbytes"}
    monkeypatch.setattr(import_utils, "PACKAGE_DISTRIBUTION_MAPPING", table, raising=False)
    new = Package("bitsandbytes", "0.50.2", "", ("bitsandbytes", "bitsandbytes.nn"), ())
    assert caches.correct_map([new]) == ["PACKAGE_DISTRIBUTION_MAPPING[bitsandbytes]"]
    assert table["bitsandbytes"] == ["bitsandbytes"]
    assert caches.correct_map([new]) == []  # it is there


def test_private_names_are_those_of_the_installed_versions():
    """A release that renames one is noticed here, before a user is."""
    def assigned(module, name):
        return re.search(rf"^\s*{name}\b.*=", _source_of(module), re.M) is not None

    assert assigned(*private.MISSING_BACKENDS[1:])
    assert assigned(*private.PACKAGE_MAP) == (Version(importlib.metadata.version("transformers")) < Version("5.24"))
    assert f"self.{private.MISSING_BACKENDS[0]} = " in _source_of("transformers.utils.import_utils")
    holder, method = private.METADATA_CACHE
    assert getattr(getattr(importlib.metadata, holder), method).cache_clear


def test_private_names_were_verified_on_the_stacks_of_the_tests():
    for library, versions in private.VERIFIED.items():
        for stack in (stacks.OLDER, stacks.NEWER):
            assert stack.get(library, versions[0]) in versions
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
    verdict.require()
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


def test_without_a_version_in_memory_what_was_seen_first_decides(site):
    """gguf has no __version__, and the host itself may have installed and imported it a moment ago: what is seen first is loaded."""
    files = {"fake_mute/__init__.py": "from fake_mute.inner import size", "fake_mute/inner.py": "def size():\n    return 1\n"}
    site.install("fake_mute", "1.0", files)
    _module("fake_mute")
    assert refresh(["fake_mute"]).ok
    site.install("fake_mute", "1.1", files | {"fake_mute/inner.py": "def size():\n    return 1 + 1\n"})
    assert not refresh(["fake_mute"]).ok


def test_an_import_that_fails_is_told_and_changes_no_flag(site):
    site.install("fake_broken", "1.0", {"fake_broken/__init__.py": "raise OSError('libfake.so: no such file')"})
    verdict = refresh(["fake_broken"])
    assert verdict.refreshed == verdict.restart == ()
    assert "libfake.so" in verdict.failed[0].reason
    assert not verdict.ok
    with pytest.raises(DependencyError, match=r"libfake\.so.*restart alone does not help"):
        verdict.require()
    site.install("fake_broken", "1.1", {"fake_broken/__init__.py": ""})
    assert refresh(["fake_broken"]).ok, "a repaired package needs no restart"


def test_an_import_that_fails_in_this_process_alone_asks_for_a_restart(site, monkeypatch):
    monkeypatch.setattr(sys, "sd3_is_used_up", True, raising=False)
    site.install("fake_once", "1.0", {"fake_once/__init__.py": "import sys\nassert not hasattr(sys, 'sd3_is_used_up'), 'only once'"})
    verdict = refresh(["fake_once"])
    assert verdict.failed == ()
    assert "only once" in verdict.restart[0].reason
    with pytest.raises(RestartRequired, match="only once"):
        verdict.require()


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
    (entry,) = refresh(["fake_needy"]).failed
    assert "fake_absent" in entry.reason
    assert "Install" in entry.reason


def test_a_missing_module_without_a_name_is_an_import_that_fails(site):
    site.install("fake_nameless", "1.0", {"fake_nameless/__init__.py": "raise ModuleNotFoundError('something is missing')"})
    assert "something is missing" in refresh(["fake_nameless"]).failed[0].reason


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


# --- imports that were skipped, and what the libraries believe ---------------------------------------------------------

LIBRARY = {
    "fakelib/__init__.py": "__version__ = '1.0'",
    "fakelib/import_utils.py": """
import functools, importlib.util

@functools.lru_cache
def is_fakepkg_available():
    return importlib.util.find_spec("fakepkg") is not None

def is_fakepkg_two_available():
    return False

_fakepkg_available, _fakepkg_version = is_fakepkg_available(), "N/A"
_is_fakepkg_available = _fakepkg_available
_other_available, _other_version = False, "N/A"
""",
    "fakelib/user.py": """
from fakelib.import_utils import _fakepkg_available, is_fakepkg_available, _other_available

if is_fakepkg_available():
    import fakepkg
    from fakepkg import tool
    from . import part
    RUN.append("a statement")
else:
    tool = None

class Base:
    pass

if is_fakepkg_available():
    from fakepkg import tool as patched

if _other_available:
    raise AssertionError("not ours")
""",
    "fakelib/part.py": "",
}
FAKEPKG = {"fakepkg/__init__.py": "def tool(): return 1"}


@pytest.fixture
def library(site, monkeypatch):
    """`fakelib` is in use and is the whole of the model stack; `fakepkg` is not there yet."""
    site.install("fakelib", "1.0", LIBRARY)
    monkeypatch.setattr("sd3deploy.refresh.verdict.LIBRARIES", ("fakelib",))
    return _module("fakelib.user")


def test_flags_and_guarded_imports_are_brought_up_to_date(site, library):
    checks = sys.modules["fakelib.import_utils"]
    base = library.Base
    library.patched = patch = object()  # the host patches libraries; that must survive
    site.install("fakepkg", "1.0", FAKEPKG)
    verdict = refresh(["fakepkg"])
    assert verdict.ok
    assert (checks._fakepkg_available, checks._fakepkg_version, library._fakepkg_available) == (True, "1.0", True)
    assert checks._is_fakepkg_available
    assert (checks._other_available, checks._other_version) == (False, "N/A")
    assert checks.is_fakepkg_available()
    assert library.tool() == library.fakepkg.tool() == 1
    assert library.part is sys.modules["fakelib.part"]
    assert library.Base is base
    assert library.patched is patch
    again = refresh(["fakepkg"])
    assert again.ok
    assert again.steps == ()


def test_no_statement_of_a_library_is_run(site, library):
    """The one in the guard would raise."""
    site.install("fakepkg", "1.0", FAKEPKG)
    assert refresh(["fakepkg"]).ok
    assert not hasattr(library, "RUN")
    assert imports.make_up([read_package("fakepkg")], ("fakelib",)) == []


@pytest.mark.parametrize("name", ["is_fakepkg_available", "is_fakepkg_ready", "USE_FAKEPKG"])
def test_a_library_that_remembers_in_a_way_of_its_own_is_not_believed(site, library, name):
    """The answer is kept where no cache is found; a new process gives another one."""
    checks = sys.modules["fakelib.import_utils"]
    site.install("fakelib", "1.0", {"fakelib/import_utils.py": f"{LIBRARY['fakelib/import_utils.py']}\ndef {name}(): return True\n"})
    if name.isupper():
        checks.USE_FAKEPKG = False
        site.install("fakelib", "1.0", {"fakelib/import_utils.py": f"{LIBRARY['fakelib/import_utils.py']}\n{name} = True\n"})
    else:
        kept = [False]
        function = types.FunctionType((lambda: kept[0]).__code__, vars(checks), name, closure=(types.CellType(kept),))
        function.__module__ = checks.__name__
        setattr(checks, name, function)
        if hasattr(library, name):
            setattr(library, name, function)
    site.install("fakepkg", "1.0", FAKEPKG)
    verdict = refresh(["fakepkg"])
    assert verdict.refreshed == ()
    (entry,) = verdict.restart
    assert entry.name == "fakepkg"
    assert name in entry.reason
    assert "fakelib" in entry.reason
    assert "Restart" in entry.reason


def test_a_name_that_a_new_process_binds_and_this_one_does_not_asks_for_a_restart(site, library, monkeypatch):
    monkeypatch.setattr("sd3deploy.refresh.verdict.imports.make_up", lambda *_: [])
    site.install("fakelib", "1.0", {"fakelib/user.py": LIBRARY["fakelib/user.py"].replace('RUN.append("a statement")', "")})
    site.install("fakepkg", "1.0", FAKEPKG)
    assert "fakelib" in refresh(["fakepkg"]).restart[0].reason


def test_what_a_new_process_denies_as_well_needs_no_restart(site, library):
    """`is_fakepkg_two_available` says no in any process: the library wants another version, or another machine."""
    site.install("fakepkg", "1.0", FAKEPKG)
    checks = sys.modules["fakelib.import_utils"]
    verdict = refresh(["fakepkg"])
    assert not checks.is_fakepkg_two_available()
    assert verdict.ok
    assert verdict.refreshed == ("fakepkg",)


def test_a_library_replaced_on_disk_is_not_corrected_by_its_new_files(site, library):
    site.install("fakelib", "2.0", LIBRARY | {"fakelib/user.py": LIBRARY["fakelib/user.py"].replace('RUN.append("a statement")', "")})
    site.install("fakepkg", "1.0", FAKEPKG)
    verdict = refresh(["fakepkg"])
    assert [entry.name for entry in verdict.restart] == ["fakelib"]
    assert "2.0" in verdict.restart[0].reason
    assert library.tool is None


@pytest.mark.parametrize("there", ["1.0", "9.9.dev1"])
def test_a_version_that_differs_from_the_metadata_is_no_reason_for_a_restart(site, library, there, monkeypatch):
    """An editable install, or a library whose `__version__` is another for good: its files are older than this process."""
    sys.modules["fakelib"].__version__ = there
    monkeypatch.setattr(loaded, "_started", lambda: 4e9)
    site.install("fakepkg", "1.0", FAKEPKG)
    assert refresh(["fakepkg", "fakelib"]).ok
    assert library.tool


# --- the same, with the real libraries ---------------------------------------------------------------------------------


@pytest.fixture
def stack():
    """transformers, diffusers, accelerate and peft as the host loads them, with bitsandbytes there from the start."""
    names = ["transformers", "diffusers", "accelerate", "peft", "transformers.quantizers.quantizer_bnb_4bit", "diffusers.quantizers"]
    return {name: importlib.import_module(name) for name in names}


def test_peft_of_another_version_than_its_metadata_blocks_nothing(stack, monkeypatch):
    monkeypatch.setattr(stack["peft"], "__version__", "0.0.dev1")
    refresh(["bitsandbytes"]).require()


def test_a_renamed_predicate_of_transformers_is_noticed(stack, monkeypatch):
    """Whatever it is called and however it remembers: what it decides is tried."""
    from transformers.utils import import_utils

    monkeypatch.delattr(import_utils, "is_bitsandbytes_available")
    monkeypatch.setattr(stack["transformers.quantizers.quantizer_bnb_4bit"], "is_bitsandbytes_available", lambda: False)
    with pytest.raises(RestartRequired, match="transformers"):
        refresh(["bitsandbytes"]).require()
    monkeypatch.undo()
    refresh(["bitsandbytes"]).require()


def test_a_predicate_of_diffusers_that_keeps_its_answer_is_noticed(stack, monkeypatch):
    from diffusers.utils import import_utils

    def is_bitsandbytes_available() -> bool:
        return False

    is_bitsandbytes_available.__module__ = import_utils.__name__
    monkeypatch.setattr(import_utils, "is_bitsandbytes_available", is_bitsandbytes_available)
    with pytest.raises(RestartRequired, match=r"diffusers .*is_bitsandbytes_available"):
        refresh(["bitsandbytes"]).require()


def test_importing_it_needs_nothing_heavy():
    code = "import sys, sd3deploy.refresh; print([m for m in ('torch', 'transformers', 'diffusers', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=stacks.ROOT)
    assert result.stdout.strip() == "[]", result.stderr
