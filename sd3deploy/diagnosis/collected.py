"""What a collector of logs has put before each line: Docker, Compose, Kubernetes, journald; or who pasted it, in spaces."""

from __future__ import annotations

import re
import textwrap

from sd3deploy.lazy import lazy

__all__ = ["bare"]

_LOOKED_AT = 5  # lines of a block, which tell how all of it is written
_DEEP = 3  # a container's line in Compose's in the journal
_PREFIXES = tuple(
    lazy(pattern, re.MULTILINE)
    for pattern in (
        r"^[\w.-]{1,60} +\| ",  # docker compose: the service
        # docker logs --timestamps, kubectl logs --timestamps, CRI and GitHub: a time that no program prints so exactly
        r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6,9}(?:Z|[+-]\d\d:\d\d) (?:std(?:out|err) [FP] )?",
        r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S* \[?std(?:out|err)\]?:? ",
        # journalctl: a time, the machine, the program
        r"^(?:[^\W\d]{3,4}\.? [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)?|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:?\d\d)"
        r" [\w.-]+ [^\s\[\]:]+(?:\[\d+\])?: ",
    )
)


def bare(block: str) -> str:
    """The lines of a block without it, as many as there are."""
    for _ in range(_DEEP):
        sample = [line for line in block[: _LOOKED_AT * 1000].splitlines()[: 2 * _LOOKED_AT] if line.strip()][:_LOOKED_AT]
        prefix = next((one for one in _PREFIXES if sum(bool(one.match(line)) for line in sample) * 2 > len(sample)), None)
        if prefix is None:
            break
        block = prefix.sub("", block)
    return textwrap.dedent(block) if block.startswith("    ") else block
