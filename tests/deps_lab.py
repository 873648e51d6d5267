"""A laboratory for installs: real environments with little in them, wheels made on the spot, the real pip."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

from demo.environment import python_of, site_of

# An address where nothing answers: what pip sees without network.
NOWHERE = "--index-url http://127.0.0.1:9/simple"

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Lab:
    """One throw-away environment with pip and packaging, and a folder of wheels that pip may take from."""

    folder: Path
    python: Path
    site: Path
    wheels: Path

    @property
    def offline_args(self) -> str:
        """PIP_EXTRA_ARGS that keep pip away from every index, and from compiling what is thrown away."""
        return f"--no-index --no-compile --find-links {self.wheels}"

    @property
    def quoted_args(self) -> str:
        """The same, for a folder with spaces in its path."""
        return f"--no-index --no-compile --find-links {shlex.quote(str(self.wheels))}"

    def run(self, code: str, *, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run Python code in the environment, with this project importable."""
        full = {**clean(), "PYTHONPATH": str(ROOT), **environ}
        done = subprocess.run([self.python, "-c", PRELUDE + code], capture_output=True, text=True, env=full, cwd=self.folder)
        if check and done.returncode:
            raise AssertionError(done.stdout + done.stderr)
        return done

    def json(self, code: str, **environ: str):
        """Run code that ends with print(json.dumps(…)), and read that."""
        return json.loads(self.run(code, **environ).stdout.strip().splitlines()[-1])

    def pip(self, *arguments: str) -> None:
        """The pip of this environment, which must succeed."""
        command = [self.python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(command, capture_output=True, text=True, env=clean())
        assert done.returncode == 0, done.stdout + done.stderr

    def toy(self, *versions: str, name: str = "sd3toy", needs: tuple[str, ...] = ()) -> None:
        """Make wheels of these versions available."""
        for version in versions:
            wheel(self.wheels, name, version, needs=needs)

    def install(self, *lines: str) -> None:
        """Install from the folder of wheels."""
        self.pip("install", "--no-deps", "--no-compile", "--no-index", "--find-links", str(self.wheels), *lines)


# What every snippet may use. `go` is check → plan → apply for requirements given as "name specifier" lines.
PRELUDE = """
import json, os, sys
from sd3deploy import deps, errors
from sd3deploy.installed import versions
def needs(*lines):
    return [deps.Requirement(*(line.split(" ") + [""])[:2]) for line in lines]
def states(*lines):
    return {one.name: one.state.name for one in deps.check(needs(*lines))}
def go(*lines, **options):
    chosen = deps.Options(**{"extra_args": os.environ.get("EXTRA", ""), **options})
    return deps.apply(deps.plan(deps.check(needs(*lines)), chosen, versions()), chosen)
def attempt(*lines, **options):
    try:
        return {"changed": go(*lines, **options).changed}
    except errors.DependencyError as error:
        return {"id": error.id, "text": str(error)}
"""


def bare(folder: Path) -> Lab:
    """A new environment that holds links to this one's pip and packaging, and nothing else."""
    target = folder / "environment"
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(target)
    source, site = Path(sysconfig.get_path("purelib")), site_of(target)
    for entry in source.iterdir():
        if entry.name.split("-")[0] in ("pip", "packaging"):
            (site / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
    wheels = folder / "wheels"
    wheels.mkdir(exist_ok=True)
    return Lab(folder, python_of(target), site, wheels)


# What would steer pip, or make each of many small processes compile everything anew.
_STEERING = {
    "PIP_EXTRA_ARGS",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_NO_INDEX",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "SD3_NO_INSTALL",
    "UV_CONSTRAINT",
}


def clean() -> dict[str, str]:
    """This process's environment without what a test must not inherit."""
    return {name: value for name, value in os.environ.items() if name not in _STEERING and not name.startswith("SD_")}


def wheel(
    folder: Path, name: str, version: str, *, needs: tuple[str, ...] = (), size: int = 0, package: str = "", files: tuple[str, ...] = ()
) -> Path:
    """A wheel with a package of three modules and a native library. size: bytes of an additional data file. package: its folder, where
    that is not the name. files: further ones, by their paths in the site folder; what is in them names the distribution.
    """
    package, stem = package or name, name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    contents = {
        f"{package}/__init__.py": f'__version__ = "{version}"\n',
        f"{package}/part.py": f'from {package} import __version__\nVALUE = "{version}"\nBY = "{name}"\n',
        f"{package}/old_{version.replace('.', '_')}.py": f"ONLY_IN = {version!r}\n",
        f"{package}/library.so": f"not a library, but as long as one: {name} {version}",
        **dict.fromkeys(files, f'"""Of {name}."""\n'),
        f"{info}/METADATA": "".join(
            [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", *(f"Requires-Dist: {need}\n" for need in needs), "\n"]
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: lab\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    encoded = {path: text.encode() for path, text in contents.items()}
    if size:
        encoded[f"{package}/data.bin"] = bytes(size)
    rows = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in encoded.items()]
    encoded[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    made = folder / f"{stem}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for path, data in encoded.items():
            archive.writestr(path, data)
    return made


def overlay(source: Path, target: Path, *names: str) -> None:
    """Put these top-level folders over what is there, as an installer that removes nothing would. Links, for the sake of time:
    never write into such a file, replace it."""

    def link(file: str, to: str) -> None:
        Path(to).unlink(missing_ok=True)
        os.link(file, to)

    for name in names:
        shutil.copytree(source / name, target / name, dirs_exist_ok=True, copy_function=link)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def has_registry() -> bool:
    """Whether pip reaches a package index: the tests that need one skip visibly where it does not."""
    probe = ["install", "--dry-run", "--ignore-installed", "--quiet", "--no-deps", "--retries", "0", "--timeout", "5", "six"]
    return subprocess.run([sys.executable, "-m", "pip", *probe], capture_output=True, env=clean()).returncode == 0
