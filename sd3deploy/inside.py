"""Where a command looks: into the folder and the Python of an SD.Next that need not run. It does not guess what is in another Python, it
runs there. This much works in any Python: it takes nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sd3deploy.errors import HostError

__all__ = ["Folders", "add_options", "commit", "elsewhere", "folders"]

_OURS = Path(__file__).parents[1]
_COMMANDS = ("bundle", "doctor", "quality", "quantize", "verify")  # those that look at an SD.Next
_MARK = "SD3DEPLOY_INSIDE"  # set for a process that was handed over to: it hands over no further
_MODELS = ("diffusers_dir", "ckpt_dir", "hfcache_dir")  # settings of the host that name folders with models


@dataclass(frozen=True)
class Folders:
    """root: of SD.Next, None where there is none. data: with its config.json, log and models. models: where models may lie."""

    root: Path | None
    data: Path | None
    models: tuple[Path, ...] = ()

    @property
    def log(self) -> Path | None:
        """The host's log, where it keeps one."""
        places = [folder / "sdnext.log" for folder in dict.fromkeys(filter(None, (self.data, self.root)))]
        return max((path for path in places if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)

    @property
    def config(self) -> dict[str, object]:
        """The host's settings as it has stored them; {} where there are none."""
        try:
            found = json.loads((self.data / "config.json").read_text(encoding="utf-8")) if self.data else {}
        except (OSError, ValueError):  # none yet, or damaged: the host begins with its defaults then
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def home(self) -> Path | None:
        """The host's own folder for models, as its modules/paths.py finds it; a server that was started with --models-dir has another."""
        named = os.environ.get("SD_MODELSDIR") or self.config.get("models_dir") or "models"
        return self.data / str(named) if self.data else None


def add_options(parser: argparse.ArgumentParser, *, python: bool = True) -> None:
    """`--sdnext`, `--data` and, for a command that runs in the Python of the host, `--python`."""
    parser.add_argument("--sdnext", metavar="DIR", help="the folder of SD.Next (default: the one that this extension is installed in)")
    parser.add_argument("--data", metavar="DIR", help="its data folder, where that is another one (--data-dir of SD.Next)")
    if python:
        parser.add_argument("--python", metavar="EXE", help="its Python (default: the one in DIR/venv)")


def folders(options: argparse.Namespace) -> Folders:
    """Raises HostError for a folder that holds no SD.Next."""
    installed_in = _OURS.parents[1] if _OURS.parent.name in ("extensions", "extensions-builtin") else None
    root = Path(options.sdnext).expanduser().resolve() if options.sdnext else installed_in
    if options.sdnext and root and not _is_host(root):
        raise HostError("host.not-there", folder=options.sdnext)
    if root and not _is_host(root):  # installed into a data folder of its own
        root, data = None, root
    else:
        data = installed_in if installed_in and installed_in != root and not options.sdnext else root
    data = Path(options.data).expanduser().resolve() if options.data else data
    found = Folders(root, data)
    configured = [found.config.get(key) for key in _MODELS]
    places = [data / "models"] if data else []
    places += [(data / str(place)) if data else Path(str(place)) for place in configured if place]
    return Folders(root, data, tuple(place for place in dict.fromkeys(places) if place.is_dir()))


def commit(root: Path) -> str:
    """The first characters of the commit that is checked out, "" where nobody knows."""
    try:
        folder = root / ".git"
        if folder.is_file():  # a submodule, or one of several work trees
            folder = root / folder.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text(encoding="utf-8").strip()
        if head.startswith("ref: "):
            head = _commit_of(folder, head.removeprefix("ref: "))
    except OSError:  # no repository
        return ""
    return head[:9]


def _commit_of(folder: Path, reference: str) -> str:
    """What a branch of the repository in `folder` is at. git packs what has not moved for a while into one file. Raises OSError."""
    shared = folder / "commondir"  # a work tree of its own has its branches in the repository that it belongs to
    folder = folder / shared.read_text(encoding="utf-8").strip() if shared.is_file() else folder
    if (folder / reference).is_file():
        return (folder / reference).read_text(encoding="utf-8").strip()
    lines = (folder / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.split()[0] for line in lines if line.endswith(f" {reference}")), "")


def elsewhere(arguments: list[str]) -> int | None:
    """Run a command that looks at an SD.Next in that one's Python. Returns its exit code; None when it is to be run here.

    Raises HostError when that Python is not there or can not run this.
    """
    if not arguments or arguments[0] not in _COMMANDS or {"-h", "--help"} & set(arguments):
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_options(parser)
    parser.add_argument("--log")
    options, _ = parser.parse_known_args(arguments)
    try:
        return _hand_over(options, arguments)
    except HostError:
        if options.log and not options.sdnext and not options.python:
            return None  # a log can be read without its SD.Next
        raise


def _hand_over(options: argparse.Namespace, arguments: list[str]) -> int | None:
    where = folders(options)
    python = None if os.environ.get(_MARK) else _python(where.root, options.python)
    if python is None or _same(python):
        return None
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    environment |= {_MARK: "1", "PYTHONPATH": os.pathsep.join(filter(None, (str(_OURS), os.environ.get("PYTHONPATH"))))}
    try:
        probe = subprocess.run([python, "-c", "import sd3deploy.deps"], env=environment, capture_output=True, text=True)
    except OSError as error:
        raise HostError("host.python-dead", python=python, detail=error) from error
    if probe.returncode:
        said = probe.stderr.strip().splitlines()
        raise HostError("host.python-dead", python=python, detail=said[-1] if said else f"exit code {probe.returncode}")
    with _ctrl_c_is_for_the_other():
        code = subprocess.run([python, "-m", "sd3deploy", *arguments], env=environment).returncode
    return code if code in (0, 1, 2) else 2


@contextmanager
def _ctrl_c_is_for_the_other() -> Iterator[None]:
    """It gets one too, and says how far it came."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_host(folder: Path) -> bool:
    return (folder / "launch.py").is_file() and (folder / "modules").is_dir()


def _python(root: Path | None, given: str | None) -> Path | None:
    if given:
        return Path(given).expanduser().absolute()
    if root is None:
        return None
    names = [Path(venv, *name) for venv in ("venv", ".venv") for name in (("bin", "python"), ("Scripts", "python.exe"))]
    found = next((root / name for name in names if (root / name).exists()), None)
    if found is None and not _is_ours(root):
        raise HostError("host.no-environment", folder=root, executable=sys.executable)
    return found


def _is_ours(root: Path) -> bool:
    """Without a venv the host runs in whatever Python it was started with: the one in which its extension is asked."""
    return root in _OURS.parents


def _same(python: Path) -> bool:
    """Whether this process runs in that environment; the executables of all environments are one file in the end."""
    environment = python.parent.parent
    if (environment / "pyvenv.cfg").is_file():
        return environment.resolve() == Path(sys.prefix).resolve()
    return sys.prefix == sys.base_prefix and python.resolve() == Path(sys.executable).resolve()
