"""Launch-time hook: the host runs it in a process of its own, before its server starts. It never stops that start."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sd3deploy import deps


def main() -> int:
    """One line on stderr where something was done or failed. 1 only where the extension can not work until the user acts."""
    options = deps.Options.from_environment(sys.argv[1:], os.environ)
    done, notes, code = {}, [], 0
    try:
        # Only some text encoders need the group, and the running server tries again when one of those is chosen.
        failures = deps.mend(("numpy",), ("bitsandbytes",) if deps.has_wheel() else (), options, changed=done)
    except Exception as error:  # a bug of ours must not stop the host
        failures, code = [deps.Failure((), "", error)], 1
    for failure in failures:
        note = f"[{getattr(failure.error, 'id', type(failure.error).__name__)}] {failure.error}"
        notes += [note] if note not in notes else []
        code = code or int(failure.group != "bitsandbytes" and not options.refusal)
    if done:
        notes.insert(0, f"installed {', '.join(done)}.")
    if notes:
        print("sd3:", " ".join(" ".join(notes).split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
