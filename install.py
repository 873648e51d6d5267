"""Launch-time hook: the host runs it in a process of its own, before its server starts. It never stops that start."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sd3deploy import deps


def main() -> int:
    """One line on stderr where something was done or failed. 1 only where the extension can not work until the user acts."""
    options = deps.Options.from_environment(sys.argv[1:], os.environ)
    done, notes, code = [], [], 0
    for needed, work in (
        (True, lambda: deps.repair("numpy", options.host_root, options).changed),
        (True, lambda: deps.ensure((), options)),
        # Only some text encoders need it, and the running server tries again when one of those is chosen.
        (False, lambda: deps.ensure(("bitsandbytes",), options) if deps.has_wheel() else ()),
    ):
        try:
            done += work() if needed or not code else ()
        except Exception as error:  # also a bug of ours must not stop the host
            notes.append(f"[{getattr(error, 'id', type(error).__name__)}] {error}")
            code = code or int(needed and options.allow)
    if done:
        notes.insert(0, f"installed {', '.join(done)}.")
    if notes:
        print("sd3:", " ".join(" ".join(notes).split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
