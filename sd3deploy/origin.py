"""Where an HTTP request comes from, by its headers: a page of another site, or this machine itself. Nothing is looked up."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["Trusted", "is_foreign", "is_local"]

_PORTS = {"http": 80, "https": 443}
_FORWARDED = ("x-forwarded-for", "x-forwarded-host", "x-real-ip", "forwarded", "via", "cf-connecting-ip")  # a proxy stands between


@dataclass(frozen=True)
class Trusted:
    """Origins whose pages may call the server, as the host's --cors-origins (a list with commas, or *) and --cors-regex name them."""

    origins: str = ""
    regex: str = ""

    def holds(self, origin: str) -> bool:
        """Whether it is one of them, as starlette's CORSMiddleware decides it."""
        names = [name for name in self.origins.split(",") if name]
        return "*" in names or origin in names or bool(self.regex and re.fullmatch(self.regex, origin))


def is_foreign(headers: Mapping[str, str], trusted: Trusted = Trusted()) -> bool:
    """Whether a browser sends this for a page of another site. headers: by their names in lower case.

    A browser says where a page comes from in Origin, and on https and localhost also what that means, in Sec-Fetch-Site; pages can set
    neither. The second is asked first: it is right behind proxies that tell the server another name than the user has typed. Programs send
    neither of them.
    """
    origin = headers.get("origin")
    if origin is not None and trusted.holds(origin):
        return False
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")  # none: the user himself, such as from a bookmark
    if origin is None:
        return False
    asked = [headers.get("host", ""), *headers.get("x-forwarded-host", "").split(",")]  # pages can set neither without being allowed to
    own = _place(origin)
    return own is None or own not in {_place(f"{urlsplit(origin).scheme}://{one.strip()}") for one in asked if one.strip()}


def is_local(client: str | None, headers: Mapping[str, str]) -> bool:
    """Whether a request was made on this machine and by nobody else. client: the address of the other end. headers: by their names in
    lower case.

    A proxy on this machine has an address of this machine; it betrays itself by a header, or by the name that its user has typed.
    """
    if not _loopback(client or "") or any(name in headers for name in _FORWARDED):
        return False
    place = _place(f"http://{headers.get('host', '')}")
    return place is not None and (place[0] == "localhost" or _loopback(place[0]))


def _place(origin: str) -> tuple[str, int] | None:
    """Host and port; None for what has none, such as “null”. The scheme gives the port where none is written, and else does not matter:
    behind a proxy the server does not know it.
    """
    try:
        parts = urlsplit(origin)
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.hostname.rstrip("."), port) if parts.hostname and port else None


def _loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
