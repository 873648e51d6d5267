"""swap.py OTHER: NumPy is in use and is replaced on disk by version OTHER; the verdict says so and nothing is touched."""

from __future__ import annotations

import sys

import numpy
import process

from sd3deploy.refresh import refresh


def main(other: str) -> None:
    loaded = numpy.__version__
    assert refresh(["numpy"]).ok
    process.pip(f"numpy=={other}")
    before = dict(sys.modules)
    verdict = refresh(["numpy"])
    assert not verdict.ok
    assert verdict.refreshed == ()
    (entry,) = verdict.restart
    assert (entry.name, entry.loaded, entry.on_disk) == ("numpy", loaded, other)
    assert loaded in entry.reason, entry.reason
    assert other in entry.reason, entry.reason
    assert "Restart" in entry.reason, entry.reason
    assert all(sys.modules.get(name) is module for name, module in before.items() if name.startswith("numpy"))
    process.pip(f"numpy=={loaded}")
    assert refresh(["numpy"]).ok, "put back: what is in memory is on disk again"


if __name__ == "__main__":
    main(sys.argv[1])
