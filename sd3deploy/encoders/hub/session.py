"""huggingface_hub's own connections, with the user's proxies, certificates and token.

`get_session()` gives a requests.Session in huggingface_hub 0.x, an httpx.Client in 1.x, an httpx2.Client in 2.x. What all of them have:
`get_session`, `build_hf_headers`, `hf_hub_url`, `get_hf_file_metadata(url, timeout=)`, `try_to_load_from_cache`, `hf_hub_download`,
`HfApi.model_info`; `status_code` and `headers` of a response; redirects are followed by a GET of either. What differs is a response that
is read bit by bit: `get(stream=True)` and `iter_content` of requests, `stream` and `iter_raw` of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "get"]

_CHUNK = 1 << 16  # bytes; what httpx reads at a time, too
_TIMEOUT = 20.0  # seconds without a byte: then it is tried again


@dataclass(frozen=True)
class Answer:
    """To a request. headers: by name in any case. chunks: its body; to be read within `get`."""

    status_code: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


@contextmanager
def get(address: str, headers: Mapping[str, str]) -> Iterator[Answer]:
    """Ask for an address. Raises what the library in use raises."""
    from huggingface_hub.utils import get_session

    session: Any = get_session()
    if callable(getattr(session, "stream", None)):  # of requests that is a switch
        with session.stream("GET", address, headers=dict(headers), timeout=_TIMEOUT) as response:
            yield Answer(response.status_code, response.headers, response.iter_raw())
        return
    with session.get(address, headers=dict(headers), timeout=_TIMEOUT, stream=True) as response:
        yield Answer(response.status_code, response.headers, response.iter_content(_CHUNK))
