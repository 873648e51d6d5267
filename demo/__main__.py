"""The way of a user from nothing to an image with a 4-bit T5, on a server that is never restarted.

The stand-in starts without bitsandbytes. Then: Settings → SD3 Deploy → `T5 FP4` → Apply; the server installs what is missing,
refreshes itself, quantizes T5 and puts it into the loaded model; Generate.
"""

from __future__ import annotations

import argparse
import base64
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from demo import environment, server
from sd3deploy import tiny_sd3

LIKE = ("2026-07", "2026-08")  # demo/host/modules/like.py
CACHE = server.ROOT / "build" / "demo"  # no dot in it: gradio serves no file below a folder that begins with one


class Steps:
    """Says what is being done, and keeps how long it took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str):
        print(f"{name} …", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)

    def table(self) -> str:
        width = max(map(len, self.seconds))
        lines = [f"  {name:<{width}}  {seconds:7.1f} s" for name, seconds in self.seconds.items()]
        return "\n".join([*lines, f"  {'together':<{width}}  {sum(self.seconds.values()):7.1f} s"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headless", action="store_true", help="end after the image instead of serving the page")
    parser.add_argument("--json", metavar="FILE", help="write the result there")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--like", choices=LIKE, default=LIKE[0], help="the SD.Next that the stand-in is (default: %(default)s)")
    parser.add_argument("--encoder", default="T5 FP4", help="the text encoder to choose (default: %(default)s)")
    args = parser.parse_args()
    steps = Steps()
    with steps.step("Make a host without bitsandbytes"):
        python = environment.linked(CACHE / "venv", without=["bitsandbytes"])
        before = installed(CACHE / "venv", "bitsandbytes")
    with steps.step("Make a tiny SD3"):
        if not tiny_sd3.cached().exists():  # in a process of its own: its imports are not ours
            subprocess.run([sys.executable, "-m", "sd3deploy.tiny_sd3"], cwd=server.ROOT, check=True, capture_output=True)
        data = server.data_folder(CACHE / "data")
    with steps.step("Start the server"):
        host = server.start(data, python=python, port=port_for(args), flags=("--like", args.like))
    try:
        print(f"  {host.url}")
        result = use(host, steps, args.encoder) | {"bitsandbytes_before": before, "seconds": steps.seconds}
        print(f"\n{steps.table()}\n")
        for key in ("encoder", "linear4bit", "wo_quantized", "t5_bytes", "t5_bytes_16bit", "bitsandbytes_before", "bitsandbytes_after",
                    "restarts", "image"):  # fmt: skip
            print(f"  {key:<20} {result[key]}")
        if args.json:
            Path(args.json).write_text(json.dumps(result, indent=2))
        if not args.headless:
            print(f"\nThe page: {host.url} (Ctrl+C ends it)", flush=True)
            host.process.wait()
    except KeyboardInterrupt:
        print()
    finally:
        host.stop()
    return 0


def use(host: server.Host, steps: Steps, encoder: str) -> dict[str, Any]:
    """What the user does. Ends the program with the server's own words when the choice is refused."""
    with steps.step(f"Settings → SD3 Deploy → {encoder} → Apply"):
        shown = while_telling(host, lambda: host.apply(sd3_text_encoder=encoder))
        status = host.get("/sdapi/v1/sd3/status")
        if status["encoder"] != encoder:
            sys.exit(f"The page says: {shown}\nThe extension says: {json.dumps(status, indent=2)}")
    with steps.step("Generate"):
        result = host.txt2img("a photo of a cat holding a sign that says hello world", width=512, height=512, steps=8)
    image = CACHE / "image.png"
    image.write_bytes(base64.b64decode(result["images"][0]))
    status = host.get("/sdapi/v1/sd3/status")
    return {
        "restarts": host.starts() - 1,
        "bitsandbytes_after": status["packages"].get("bitsandbytes"),
        **{key: status[key] for key in ("encoder", "linear4bit", "wo_quantized", "t5_bytes", "t5_bytes_16bit")},
        "image": str(image),
    }


def while_telling(host: server.Host, work: Callable[[], str]) -> str:
    """Do something on the server and print what the extension says meanwhile, as its toasts on the page do."""
    done = threading.Event()

    def tell() -> None:
        seen = 0
        while True:
            last = done.wait(0.3)
            for event in host.get("/sdapi/v1/sd3/events", params={"since": seen})["events"]:
                seen = max(seen, event["seq"])
                print(f"  {event['message']}", flush=True)
            if last:
                return

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        return work()
    finally:
        done.set()
        teller.join()


def installed(folder: Path, name: str) -> str | None:
    """The version of a distribution in a virtual environment, read from disk."""
    found = metadata.distributions(name=name, path=[str(environment.site_of(folder))])
    return next((distribution.version for distribution in found), None)


def port_for(args: argparse.Namespace) -> int:
    """The port that was asked for; another one where it is taken or nobody will look at the page."""
    if args.headless:
        return server.free_port()
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", args.port)) != 0:
            return args.port
    print(f"  Port {args.port} is taken.")
    return server.free_port()


if __name__ == "__main__":
    sys.exit(main())
