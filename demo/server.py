"""Start a host in a process of its own, the stand-in or a real SD.Next, and talk to it as a user does: over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from sd3deploy import tiny_sd3

__all__ = ["ROOT", "STAND_IN", "Host", "data_folder", "free_port", "link", "start"]

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = ROOT / "demo" / "host"
MODEL = "Diffusers/tiny-sd3"


@dataclass
class Host:
    """A running server. `url` has no slash at its end."""

    data: Path
    url: str
    process: subprocess.Popen
    auth: tuple[str, str] | None = None
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, auth=self.auth, timeout=600, trust_env=False)

    def login(self) -> None:
        """Open a browser's session: the page, unlike the API, wants a cookie instead of a password."""
        user, password = self.auth or ("", "")
        self.client.post("/login", data={"username": user, "password": password}).raise_for_status()

    def get(self, path: str, **kwargs: Any) -> Any:
        """The JSON at a path. Raises httpx.HTTPStatusError for an answer that is an error."""
        return self.client.get(path, **kwargs).raise_for_status().json()

    def post(self, path: str, body: Any = None, **kwargs: Any) -> Any:
        """Post JSON ({} without a body), return JSON (None when the answer is empty). Raises httpx.HTTPStatusError as get() does."""
        answer = self.client.post(path, json={} if body is None else body, **kwargs).raise_for_status()
        return answer.json() if answer.content else None

    def txt2img(self, prompt: str = "a cat", **values: Any) -> dict[str, Any]:
        """A small job: {'images': [base64], 'parameters': {...}, 'info': {...}}."""
        result = self.post("/sdapi/v1/txt2img", {"prompt": prompt, "width": 128, "height": 128, "steps": 2, "seed": 1} | values)
        return result | {"info": json.loads(result["info"] or "{}")}

    def set(self, **options: Any) -> dict[str, bool]:
        """Change settings over the API. Whether each one changed."""
        answers = self.post("/sdapi/v1/options", options)["updated"]
        return {key: changed for answer in answers for key, changed in answer.items()}

    def apply(self, **options: Any) -> str:
        """Change settings as the Settings page does: all its values are sent to the page's own function. Returns what it then shows."""
        config = self.get("/config")
        parts = {part["id"]: part["props"] for part in config["components"]}
        button = next(id for id, props in parts.items() if props.get("elem_id") == "settings_submit")
        index, event = next((i, d) for i, d in enumerate(config["dependencies"]) if _triggers(d, button))
        current = self.get("/sdapi/v1/options") | options
        data = []
        for id in event["inputs"]:
            props = parts.get(id, {"value": "dummy"})  # settings that the page does not show have one stand-in outside of it
            key = str(props.get("elem_id", "")).removeprefix("setting_")
            data.append(current.get(key, props.get("value")))
        return self.post("/run/predict", {"data": data, "fn_index": index, "session_hash": "settings"})["data"][-1]

    def log(self) -> str:
        """Everything that the server has written to its log file and its console."""
        files = (self.data / "sdnext.log", self.data / "console.log")
        return "\n".join(file.read_text("utf-8", "replace") for file in files if file.exists())

    def starts(self) -> int:
        """How often the server has started: a restart keeps the process but not the program in it."""
        return _starts(self.data)

    def stop(self) -> None:
        """End the process that was started here."""
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def _starts(data: Path) -> int:
    log = data / "sdnext.log"
    return log.read_text("utf-8", "replace").count("Startup time:") if log.exists() else 0


def _triggers(dependency: dict[str, Any], id: int) -> bool:
    return any((target[0] if isinstance(target, list) else target) == id for target in dependency["targets"])


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link(source: Path, target: Path) -> None:
    """A link to a folder, or a copy of what git knows of it where links are not allowed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".git", ".venv", ".cache", "build", "__pycache__", "node_modules"))


def data_folder(folder: Path, *, extension: Path | None = ROOT, **options: Any) -> Path:
    """A fresh data folder of the host: the tiny model, this extension (`extension`=None: without it), settings in config.json.

    The host counts no requests: by its default a quick machine has used up its 60 pictures a minute within one test file.
    """
    shutil.rmtree(folder, ignore_errors=True)
    link(tiny_sd3.ensure(), folder / "models" / MODEL)
    (folder / "extensions").mkdir(parents=True)
    if extension is not None:
        link(extension, folder / "extensions" / "sd-extension-sd3")
    shared = {"te_shared_te": False, "te_shared_t5": False}  # the second is its name before 2026-06
    settings = {"sd_model_checkpoint": MODEL, **shared, "offline_mode": False, "samples_format": "png", "server_rate_limit": 0}
    (folder / "config.json").write_text(json.dumps(settings | options))
    return folder


def start(
    data: Path,
    *,
    root: Path = STAND_IN,
    python: Path | str = sys.executable,
    port: int | None = None,
    flags: tuple[str, ...] = (),
    auth: tuple[str, str] | None = None,
    timeout: float = 600,
    **environment: str,
) -> Host:
    """Start the host in `root` with the data folder `data` and wait (`timeout` seconds at most) until it is up with its model.

    Raises RuntimeError with the end of the log when the process ends or does not come up.
    """
    port = port or free_port()
    words = [str(python), "launch.py", "--skip-all", "--skip-git", "--skip-torch", "--data-dir", str(data), "--port", str(port)]
    words += ["--theme", "standard/black-teal", *flags, *(["--auth", ":".join(auth)] if auth else [])]
    temporary = data / "tmp"
    temporary.mkdir(exist_ok=True)
    env = os.environ | {
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")]),  # a restart looks for "python" there
        "SD_LOG": str(data / "sdnext.log"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(data / "hf"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(temporary),  # SD.Next empties gradio's folder in it at its start, and fails where another one does the same
        **environment,
    }
    for name in ("PYTHONPATH", "PYTEST_CURRENT_TEST"):
        env.pop(name, None)
    starts = _starts(data)  # the log goes on where an earlier start on the same data folder has ended
    with open(data / "console.log", "wb") as console:
        process = subprocess.Popen(words, cwd=root, env=env, stdout=console, stderr=subprocess.STDOUT)
    host = Host(data, f"http://127.0.0.1:{port}", process, auth)
    end = time.monotonic() + timeout
    while host.starts() == starts:
        if process.poll() is not None or time.monotonic() > end:
            with contextlib.suppress(Exception):
                host.stop()
            raise RuntimeError(f"the host did not come up (exit code {process.returncode}):\n{host.log()[-3000:]}")
        time.sleep(0.1)
    return host
