"""One host for all contract tests: the stand-in, or a real SD.Next when SDNEXT_ROOT and SDNEXT_PYTHON are set; of 2026-08 with
SDNEXT_LIKE=2026-08.

It runs without this extension and without bitsandbytes, with a password, and with a probe: an extension that notes what the
host does and executes what a test sends (`host.run`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import textwrap
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from demo import environment, server

PROBE = Path(__file__).parent / "probe"
AUTH = ("probe", "password")
REAL = "SDNEXT_ROOT" in os.environ and "SDNEXT_PYTHON" in os.environ
# Which SD.Next the stand-in is; a real one of 2026-07 gets the changes of 2026-08 while it loads (tests/contract/august).
LIKE = os.environ.get("SDNEXT_LIKE", "2026-07")
CHANGES = Path(__file__).parent / "august"


class ProbedHost(server.Host):
    """A host with the probe inside."""

    def run(self, code: str):
        """Execute Python in the host's process, on a thread of its API. Returns what the code has named `result`."""
        answer = self.client.post("/sdapi/v1/sd3probe", json={"code": textwrap.dedent(code)})
        assert answer.status_code != 500, answer.text  # what it has raised
        return answer.raise_for_status().json()["result"]

    def stop(self):
        """End the server. Raises AssertionError when the extension has broken the rules of the two locks meanwhile."""
        broken = []
        if self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):  # a server without the probe
                broken = self.run("from sd3probe import locks; result = locks.violations")
        super().stop()
        assert not broken, broken

    def events(self, start: int = 0) -> list[tuple[str, dict]]:
        return [(name, facts) for name, facts in self.run(f"result = sd3probe.events[{start}:]")]

    def count(self) -> int:
        return self.run("result = len(sd3probe.events)")


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items):
    """Tests that share a server stay on one process of xdist; a module with a server of its own is free to go to the other."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(item.module.__name__ if "host" in vars(item.module) else "contract"))
            if "real" in item.keywords and not REAL:
                item.add_marker(pytest.mark.skip(reason="needs SDNEXT_ROOT and SDNEXT_PYTHON"))


def start(folder: Path, name: str, *flags: str, like: str = LIKE, **kwargs) -> ProbedHost:
    """Start the host under test with the data folder `folder`/data and an environment of its own."""
    python = Path(os.environ["SDNEXT_PYTHON"]) if REAL else None
    source = python.parent.parent if python else None
    linked = environment.linked(folder / f"venv-{name}", without=["bitsandbytes"], source=source)
    root = Path(os.environ["SDNEXT_ROOT"]) if REAL else server.STAND_IN
    if not REAL:
        flags = ("--like", like, *flags)
    elif like == "2026-08":
        change(folder / name, linked)
    started = server.start(folder / name, root=root, python=linked, flags=flags, **kwargs)
    return ProbedHost(started.data, started.url, started.process, started.auth)


def change(data: Path, python: Path) -> None:
    """Let a real SD.Next of 2026-07 load as one of 2026-08: an extension edits its modules in memory, and `sdnq` is a package."""
    shutil.copytree(CHANGES, data / "extensions" / "august", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    site = environment.site_of(python.parents[1])
    ours = Path(metadata.distribution("sdnq").locate_file(""))
    for entry in ours.glob("sdnq*"):
        if not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)


@contextmanager
def encoded(host: ProbedHost):
    """`encoded(host)` as `counts`: counts() says how often T5 has encoded since the last question."""
    host.run("""
        from modules import modeldata
        def watch():
            encoder = modeldata.model_data.sd_model.text_encoder_3
            if encoder is not sd3probe.watched:
                sd3probe.watched = encoder
                encoder.register_forward_pre_hook(lambda *values: sd3probe.encodings.append(1))
        sd3probe.watched, sd3probe.encodings, sd3probe.watch = None, [], watch
        watch()
    """)

    def counts():
        return host.run("sd3probe.watch(); result = len(sd3probe.encodings); sd3probe.encodings.clear()")

    yield counts
    host.run("del sd3probe.watched, sd3probe.encodings, sd3probe.watch")


@pytest.fixture
def other_vae(host):
    """The name of a VAE that the host can take instead of that of the model: a copy of it. SD.Next's loader has the shapes of the published
    ones alone.
    """
    host.run("""
        import copy
        from modules import modeldata, sd_vae
        sd3probe.loader = "load_vae" if hasattr(sd_vae, "load_vae") else "load_vae_diffusers"  # until 2026
        sd3probe.load_vae = getattr(sd_vae, sd3probe.loader)
        setattr(sd_vae, sd3probe.loader, lambda *values, **words: copy.deepcopy(modeldata.model_data.sd_model.vae))
        sd_vae.vae_dict["another"] = "/another"
    """)
    yield "another"
    host.set(sd_vae="Automatic")
    host.run("""
        from modules import sd_vae
        sd_vae.reload_vae_weights()
        setattr(sd_vae, sd3probe.loader, sd3probe.load_vae)
        del sd_vae.vae_dict["another"]
    """)


@contextmanager
def slow_disk(host: ProbedHost, seconds: float = 0.25):
    """Each piece of a text encoder takes so long to read: the tiny model is as slow as a large one on an old disk."""
    host.run(f"""
        import time
        from sd3deploy.encoders import quantize
        sd3probe.read = quantize._read
        def slow(*values):
            time.sleep({seconds})
            return sd3probe.read(*values)
        quantize._read = slow
    """)
    try:
        yield
    finally:
        host.run("from sd3deploy.encoders import quantize; quantize._read = sd3probe.read")


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    data = server.data_folder(folder / "data", extension=None, sd3probe_stored=5, sd3probe_orphan="kept")
    shutil.copytree(PROBE, data / "extensions" / "sd3-probe", ignore=shutil.ignore_patterns("__pycache__"))
    try:
        started = start(folder, "data", "--sd3-probe-flag", "seen", auth=AUTH)
    except RuntimeError as error:
        pytest.exit(str(error))
    probed = ProbedHost(started.data, started.url, started.process, started.auth)
    answer = probed.client.post("/sdapi/v1/sd3probe", json={"code": "result = True"})
    if answer.status_code != 200:
        probed.stop()
        pytest.exit(f"the probe does not answer: {answer.text}\n{probed.log()[-6000:]}")
    yield probed
    probed.stop()


@pytest.fixture
def news(host):
    """The extension's events since the start of the test: `news()` gives them as the API does."""
    before = host.get("/sdapi/v1/sd3/events")["events"]
    seen = before[-1]["seq"] if before else 0
    return lambda: host.get(f"/sdapi/v1/sd3/events?since={seen}")["events"]


@pytest.fixture
def switches(host):
    """Set what the probe's hooks do in the jobs of one test: `switches(size={"process": [64, 64]})`."""

    def set_switches(**values):
        host.run(f"sd3probe.switches.update({values!r})")

    yield set_switches
    host.run("sd3probe.switches.clear()")
