"""A hub of its own: model_info, resolve with a redirect to another server for large files, ranges; and switches for what goes wrong."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

__all__ = ["COMMIT", "Hub", "in_place_of_the_hub", "with_a_model"]

_RESOLVE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")
_CDN = re.compile(r"/cdn/(\d+)/([\w.-]+/[\w.-]+)/(.+)")
_TREE = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/tree/")
_INFO = re.compile(r"/api/models/([\w.-]+/[\w.-]+?)(?:/revision/([^/]+))?")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """repositories: owner/name → path → content. Large files are those that are not JSON.

    Switches: status, the answers to the next requests for bytes (each used once); head_status, to all requests at the hub itself; broken:
    how many bytes come before a connection is closed, for each of the next requests; ranges: whether the server knows them; hanging: while
    it is set no bytes come; versions: whether it tells commits and ETags; sizes: whether the hub tells how long a large file is; commit: of
    the main branch's files, which a list of names knows later; change: called with the number of each request for bytes; generation:
    addresses of another one have expired.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.served = 0  # bytes of large files
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        self.tokens: Counter[str] = Counter()  # where a token came: "hub", "cdn"
        self.status: list[tuple[int, dict[str, str]]] = []
        self.head_status: tuple[int, dict[str, str]] | None = None
        self.broken: list[int] = []
        self.ranges = self.versions = self.sizes = True
        self.commit = COMMIT
        self.hanging = threading.Event()
        self.released = threading.Event()
        self.hung = threading.Event()
        self.change = lambda number: None
        self.generation = 0
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format, *arguments):
                pass

            def do_HEAD(self):
                hub.answer(self, False)

            def do_GET(self):
                hub.answer(self, True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def publish(self, model):
        """The small T5 of tests/t5.py as org/t5."""
        folder = model / "text_encoder_3"
        files = {f"text_encoder_3/{one.name}": one.read_bytes() for one in folder.iterdir()}
        self.repositories["org/t5"] = {"encoders/t5.safetensors": (model / "t5.safetensors").read_bytes(), "README.md": b"words", **files}

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, body):
        with self.lock:
            self.requests.append((handler.command, handler.path, handler.headers.get("Range")))
            if handler.headers.get("Authorization"):
                self.tokens["cdn" if handler.path.startswith("/cdn/") else "hub"] += 1
        path = unquote(handler.path.partition("?")[0])
        with suppress(OSError):
            if found := _CDN.fullmatch(path):
                self.bytes(handler, found)
            elif self.head_status:
                self.plain(handler, self.head_status[0], b"", self.head_status[1])
            elif (found := _INFO.fullmatch(path)) and found[1] in self.repositories:
                names = [{"rfilename": name} for name in self.repositories[found[1]]]
                content = json.dumps({"id": found[1], "sha": COMMIT if self.versions else None, "siblings": names}).encode()
                self.plain(handler, 200, content, {"Content-Type": "application/json"})
            elif (found := _TREE.match(path)) and found[1] in self.repositories:  # of folders that it never has
                self.plain(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
            elif (found := _RESOLVE.fullmatch(path)) and found[1] in self.repositories:
                self.resolve(handler, found[1], found[3], body)
            else:
                self.plain(handler, 404 if not found else 401, b"", {"X-Error-Code": "RepoNotFound"})

    def resolve(self, handler, repository, name, body):
        content = self.repositories[repository].get(name)
        if content is None:
            return self.plain(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"Accept-Ranges": "bytes"} | ({"X-Repo-Commit": self.commit, "ETag": tag} if self.versions else {})
        if name.endswith(".json"):
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range") or "")
            if found and body:
                start, end = int(found[1]), min(int(found[2]) + 1, len(content))
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
                return self.plain(handler, 206, content[start:end], headers)
            return self.plain(handler, 200, content, headers)
        # Another name of the same machine, so that it is another server for whoever looks at names.
        where = f"http://localhost:{self.server.server_port}/cdn/{self.generation}/{repository}/{name}"
        size = {"X-Linked-Size": str(len(content))} if self.sizes else {"Content-Length": None}
        linked = {"Location": where} | size | ({"X-Linked-ETag": tag} if self.versions else {})
        self.plain(handler, 302, b"", {**headers, **linked})

    def bytes(self, handler, found):
        with self.lock:
            number = sum(path.startswith("/cdn/") for _, path, _ in self.requests)
            status = self.status.pop(0) if self.status else None
            broken = self.broken.pop(0) if self.broken else None
        self.change(number)
        if int(found[1]) != self.generation:
            return self.plain(handler, 403, b"expired", {})
        if status:
            return self.plain(handler, status[0], b"", status[1])
        content = self.repositories[found[2]][found[3]]
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range") or "")
        start, end, number = 0, len(content), 200
        if asked and self.ranges:
            start, end, number = int(asked[1]), min(int(asked[2]) + 1, len(content)), 206
            if start >= len(content):
                return self.plain(handler, 416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        handler.send_response(number)
        for name, value in {**headers, "Content-Length": str(end - start)}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return None
        end = end if broken is None else min(end, start + broken)
        for at in range(start, end, 1 << 14):
            if self.hanging.is_set():
                self.hung.set()
                self.released.wait()
            part = content[at : min(at + (1 << 14), end)]
            handler.wfile.write(part)
            with self.lock:
                self.served += len(part)
        if broken is not None:
            handler.close_connection = True
        return None

    @staticmethod
    def plain(handler, status, content, headers):
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)


@contextmanager
def with_a_model(model, patch):
    """A hub that has the T5 of a model folder, in the place of the real one for the time of a monkeypatch."""
    server = Hub()
    server.publish(model)
    in_place_of_the_hub(server, patch)
    try:
        yield server
    finally:
        server.close()


def in_place_of_the_hub(server, patch):
    """For the time of a monkeypatch huggingface_hub asks this server, as with HF_ENDPOINT when it is imported."""
    from huggingface_hub import constants, file_download

    patch.setattr(constants, "ENDPOINT", server.endpoint)
    for module in (constants, file_download):
        if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
