"""What came between this machine and a server: by the class of the error, the status, the number of the system, and the server's name."""

from __future__ import annotations

import re

from sd3deploy.diagnosis.failure import Failure
from sd3deploy.diagnosis.rule import Advice, Kind, Seen, Verdict, kinds
from sd3deploy.lazy import lazy

__all__ = ["KINDS", "judge"]

_SDNEXT = "https://github.com/vladmandic/sdnext/issues/"
KINDS = kinds(
    Kind("gated", "gated-access", "setting", f"{_SDNEXT}3293"),
    Kind("token-invalid", "gated-access", "setting", f"{_SDNEXT}4130"),
    Kind("repository-missing", "gated-access", "setting", "https://github.com/huggingface/diffusers/issues/8541"),
    Kind("hub-offline", "network", "setting", "https://github.com/huggingface/huggingface_hub/pull/1899"),
    Kind("hub-certificate", "network", "none", "https://github.com/Stability-AI/stable-virtual-camera/issues/23"),
    Kind("hub-proxy", "network", "restart", "https://github.com/anapnoe/stable-diffusion-webui-ux/issues/211"),
    Kind("hub-dns", "network", "none", "https://github.com/huggingface/transformers/issues/12575"),
    Kind("hub-too-many", "network", "setting", "https://github.com/huggingface/transformers/issues/21129"),
    Kind("hub-down", "network", "none", "https://github.com/huggingface/huggingface_hub/issues/2060"),
    Kind("hub-xet", "network", "setting", "https://github.com/huggingface/huggingface_hub/issues/3036"),
    Kind("hub-timeout", "network", "setting", "https://github.com/lewandofskee/DiAD/issues/16"),
    Kind("hub-unreachable", "network", "setting", f"{_SDNEXT}3226"),
    Kind("hub-mirror", "network", "setting", "https://github.com/padeoe/hf-mirror-site/issues/56"),
    Kind("download-broken", "network", "none", "https://github.com/huggingface/huggingface_hub/issues/1959"),
    Kind("proxy-scheme", "network", "restart", "https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/16474"),
    Kind("server-unreachable", "network", "none", "https://requests.readthedocs.io/en/latest/user/quickstart/#errors-and-exceptions"),
)

_HUB = lazy(r"hugging ?face|\bhf\.co|hf-mirror|xethub|diffusers|transformers", re.IGNORECASE)
_HUB_HOST = lazy(r"(?:^|\.)(?:huggingface\.co|hf\.co|xethub\.hf\.co)$")
_LOCAL = lazy(r"^(?:localhost|127\.|0\.0\.0\.0|\[?::1)")

# What decides, in this order: a class of an error (of huggingface_hub, requests, urllib3, httpx, the standard library), a number of the
# system (Linux, macOS, Windows, getaddrinfo), or what they say themselves.
_DECIDES: tuple[tuple[str, str, tuple[int, ...], str], ...] = (
    ("hub-offline", "OfflineModeIsEnabled", (), r"outgoing traffic has been disabled|offline mode is enabled"),
    ("gated", "GatedRepoError", (), r"gated repo|Access to model \S+ is restricted"),
    ("token-invalid", "LocalTokenNotFoundError", (), r"/api/whoami|Invalid (?:user )?token(?: passed|[.!]|$)"
     r"|Invalid credentials in Authorization"
     r"|Token has been deleted|Token is required|invalid username or password"),
    ("hub-mirror", "FileMetadataError", (), r"Distant resource does not"),
    ("hub-xet", "XetError", (), r"CAS service error|hf_xet.{0,80}(?:error|failed)"),
    ("hub-certificate", "SSLCertVerificationError", (), r"CERTIFICATE_VERIFY_FAILED|self.signed certificate"),
    ("hub-proxy", "ProxyError ProxyConnectionError ProxyTimeoutError", (),
     r"connect to proxy|Tunnel connection failed|status code 407"),
    ("hub-dns", "NameResolutionError gaierror", (-2, -3, -5, 11001, 11004),
     r"Failed to resolve '|getaddrinfo failed|Name or service not known|name resolution|nodename nor servname|Could not resolve host"),
    ("repository-missing", "RepositoryNotFoundError RevisionNotFoundError", (),
     r"Repository Not Found for url|is not a valid git identifier|is not a local folder and is not a valid model identifier"),
    ("hub-timeout", "ConnectTimeout ReadTimeout WriteTimeout PoolTimeout ConnectTimeoutError ReadTimeoutError TimeoutError", (110, 10060),
     r"\btimed out\b"),
    ("download-broken", "IncompleteRead ChunkedEncodingError RemoteProtocolError InvalidChunkLength ContentDecodingError", (),
     r"Consistency check failed: file should be|peer closed connection|IncompleteRead\(|has been (?:truncated|corrupted) during download"),
    ("hub-unreachable", "ConnectionError ConnectError NewConnectionError MaxRetryError RemoteDisconnected ConnectionRefusedError ReadError"
     " ConnectionResetError ConnectionAbortedError LocalEntryNotFoundError ClientConnectorError URLError SSLError WriteError",
     (101, 104, 111, 113, 10051, 10054, 10061, 10013),
     r"couldn't connect to '|specific connection error|cannot find the requested files in the (?:local|disk) cache"
     r"|Connection (?:refused|reset)|unable to access 'https?:|Failed to connect to \S+ port|Network is unreachable|Max retries exceeded"),
)  # fmt: skip
_MATCHES = tuple((kind, frozenset(types.split()), numbers, lazy(said, re.IGNORECASE)) for kind, types, numbers, said in _DECIDES)
_SCHEME = lazy(
    r"(?i)(?:scheme for proxy URL|proxy (?:URL )?scheme|Unable to determine SOCKS version|proxies? .{0,20}scheme)\W.*?(\w+)(?=://)"
)
_SOCKS = lazy(r"(?i)dependencies for SOCKS|['\"]?socksio['\"]? package is not installed|SOCKS support|using SOCKS proxy, but")
_NAMED = lazy(
    r"https?://[^/\s]+/(?:api/models/)?(?P<name>[\w.-]+(?:/[\w.-]*\w)?)(?=/resolve|[/.\s]|$)"
    r"|(?<![\w./-])(?P<name2>[\w./-]{1,200}) is not a local folder"
)
_MODEL = lazy(r"Access to model (?P<model>[\w./-]{1,200}\w)|huggingface\.co/(?:api/models/)?(?P<model2>[\w.-]+/[\w.-]*\w)")
_BY_THE_MIRROR = ("hub-unreachable", "hub-dns", "hub-timeout", "hub-down", "hub-certificate", "repository-missing", "download-broken")


def judge(failure: Failure, seen: Seen) -> Verdict | None:
    """What came in between, where the server is Hugging Face's or a mirror of it; which server it was, for others."""
    said = failure.said
    if failure.again:
        return None
    if _SOCKS.search(said):
        return Verdict(KINDS["proxy-scheme"], {"scheme": "socks5"}, Advice(sentence="rule.proxy-scheme.package"))
    if scheme := _SCHEME.search(said):
        return Verdict(KINDS["proxy-scheme"], {"scheme": scheme[1]})
    kind = _kind(failure)
    if not kind:
        return None
    hosts = [host for host in failure.hosts if not _LOCAL.match(host)]
    others = [host for host in hosts if not _HUB_HOST.search(host) and "mirror" not in host]
    hub = any(host not in others for host in hosts) or (not hosts and _HUB.search(failure.text) is not None)
    if not hub and kind not in ("hub-offline", "hub-xet", "download-broken", "repository-missing", "gated", "token-invalid"):
        named = others and failure.failed and (failure.level or failure.traceback or failure.says)
        return Verdict(KINDS["server-unreachable"], {"host": others[0]}) if named and failure.level != "WARNING" else None
    return _of_hub(kind, failure, seen)


def _of_hub(kind: str, failure: Failure, seen: Seen) -> Verdict:
    """The mirror that is set answers for what does not come through it."""
    said = failure.said
    mirror = next((host for host in failure.hosts if "mirror" in host), "") or seen.told.get("mirror", "")
    if mirror and kind in _BY_THE_MIRROR:
        return Verdict(KINDS["hub-mirror"], {"mirror": mirror}, Advice(sentence="rule.hub-mirror.named"))
    if kind == "gated":
        found = _MODEL.search(said)
        return Verdict(KINDS[kind], {"model": (found["model"] or found["model2"]) if found else "the model"})
    if kind == "repository-missing":
        found = _NAMED.search(said)
        return Verdict(KINDS[kind], {"name": (found["name"] or found["name2"]) if found else "…"})
    return Verdict(KINDS[kind], {"status": failure.status})


def _kind(failure: Failure) -> str:
    """The status of an answer says more than the class of the error that it became."""
    found = next((kind for kind, types, numbers, pattern in _MATCHES if types & failure.types or pattern.search(failure.said)), "")
    found = found or next((kind for kind, _, numbers, _ in _MATCHES if failure.errno in numbers), "")
    status = failure.status
    if status in (401, 403) and found not in ("gated", "token-invalid"):
        return "gated" if "gated" in failure.said.lower() or status == 403 else "repository-missing"
    if status == 404 and found in ("", "hub-unreachable"):
        return "repository-missing"
    if status == 429:
        return "hub-too-many"
    return "hub-down" if status >= 500 else found
