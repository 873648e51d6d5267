"""Whose request it is: of our page, of a program, of a page somewhere else, of this machine."""

from __future__ import annotations

import pytest

from sd3deploy.origin import Trusted, is_foreign, is_local

HERE = "127.0.0.1:7860"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": HERE},  # curl, requests, httpx
        {"host": HERE, "origin": "http://127.0.0.1:7860"},
        {"host": "LOCALHOST:7860", "origin": "http://localhost:7860"},
        {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
        {"host": "sd.lan", "origin": "http://sd.lan"},
        {"host": "sd.lan:80", "origin": "http://sd.lan"},
        {"host": "sd.example:443", "origin": "https://sd.example"},
        {"host": "sd.example", "origin": "https://sd.example"},  # TLS ends at a proxy
        {"host": HERE, "x-forwarded-host": "sd.example", "origin": "https://sd.example"},
        {"host": HERE, "x-forwarded-host": "sd.example:8443, inner", "origin": "https://sd.example:8443"},
        {"host": HERE, "origin": "https://sd.example", "sec-fetch-site": "same-origin"},  # a proxy that tells nothing
        {"host": HERE, "sec-fetch-site": "none"},
    ],
)
def test_own_pages_and_programs(headers):
    assert is_foreign(headers) is False


@pytest.mark.parametrize(
    "headers",
    [
        {"host": HERE, "origin": "https://evil.example"},
        {"host": HERE, "origin": "http://127.0.0.1:3000"},  # another server of this machine
        {"host": HERE, "origin": "http://127.0.0.1"},
        {"host": HERE, "origin": "http://localhost:7860"},  # for a browser another site
        {"host": HERE, "origin": "http://127.0.0.1:7860.evil.example"},
        {"host": HERE, "origin": "http://evil.example/?127.0.0.1:7860"},
        {"host": HERE, "origin": "http://127.0.0.1:7860@evil.example"},
        {"host": HERE, "origin": "null"},  # a sandbox, a file
        {"host": HERE, "origin": ""},
        {"host": HERE, "origin": "http://[::1"},
        {"host": HERE, "origin": "http://127.0.0.1:99999999"},
        {"host": "", "origin": "null"},
        {"origin": "http://evil.example"},
        {"host": "[::1]:7860", "origin": "http://[::2]:7860"},
        {"host": HERE, "x-forwarded-host": "sd.example", "origin": "https://evil.example"},
        {"host": HERE, "sec-fetch-site": "cross-site"},
        {"host": HERE, "sec-fetch-site": "same-site", "origin": "http://127.0.0.1:3000"},
        {"host": HERE, "sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:7860"},
        {"host": HERE, "sec-fetch-site": "anything"},
    ],
)
def test_pages_of_others(headers):
    assert is_foreign(headers) is True


@pytest.mark.parametrize(
    ("trusted", "origin", "foreign"),
    [
        (Trusted("https://a.example,https://b.example"), "https://b.example", False),
        (Trusted("https://a.example,https://b.example"), "https://c.example", True),
        (Trusted("https://a.example"), "https://a.example.evil.example", True),
        (Trusted("*"), "https://anybody.example", False),
        (Trusted(regex=r"https://.*\.a\.example"), "https://x.a.example", False),
        (Trusted(regex=r"https://.*\.a\.example"), "https://x.a.example.evil.example", True),
    ],
)
@pytest.mark.parametrize("site", [{}, {"sec-fetch-site": "cross-site"}])
def test_pages_that_the_host_was_told_to_trust(trusted, origin, foreign, site):
    assert is_foreign({"host": HERE, "origin": origin, **site}, trusted) is foreign


@pytest.mark.parametrize(
    ("client", "headers", "local"),
    [
        ("127.0.0.1", {"host": HERE}, True),
        ("127.0.0.9", {"host": "localhost:7860"}, True),
        ("::1", {"host": "[::1]:7860"}, True),
        ("::ffff:127.0.0.1", {"host": HERE}, True),
        ("192.168.1.5", {"host": HERE}, False),
        ("127.0.0.1", {"host": HERE, "x-forwarded-for": "1.2.3.4"}, False),
        ("127.0.0.1", {"host": HERE, "x-forwarded-for": "127.0.0.1"}, False),
        ("127.0.0.1", {"host": HERE, "forwarded": "for=1.2.3.4"}, False),
        ("127.0.0.1", {"host": "abc.gradio.live"}, False),  # a tunnel ends on this machine
        ("127.0.0.1", {"host": "evil.example:7860"}, False),  # a name of others that leads here
        ("127.0.0.1", {}, False),
        ("", {"host": HERE}, False),
        (None, {"host": HERE}, False),
        ("testclient", {"host": HERE}, False),
    ],
)
def test_this_machine(client, headers, local):
    assert is_local(client, headers) is local
