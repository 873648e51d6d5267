"""`doctor --fix`: what is missing of this extension's packages is installed, broken ones of the host are put back to the host's version.
Nothing else of the host is moved. Asked before anything heavy is imported: what is loaded can not be replaced.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sd3deploy import deps, messages
from sd3deploy.errors import SettingError
from sd3deploy.installed import versions

__all__ = ["fix"]


def fix(host_root: Path | None, *, sure: bool = False) -> tuple[str, ...]:
    """Show what would be done, ask (`sure`: do not), and do it, whatever of it fails. Returns the distributions that changed.

    Raises the first error after everything else is done and the others are told; SettingError where nobody can be asked.
    """
    options = deps.Options(host_root=host_root, extra_args=os.environ.get("PIP_EXTRA_ARGS", ""), uv=False)
    groups = ("bitsandbytes",) if deps.has_wheel() else ()
    ours = deps.requirements(groups)
    todo = deps.plan(deps.check(ours), options, versions())
    names = {one.name for one in ours}
    broken = [one for one in map(deps.diagnose, sorted(deps.host_packages())) if one.state is deps.State.BROKEN and one.name not in names]
    if todo.empty and not broken:
        print(messages.text("doctor.nothing"))
        return ()
    if not todo.empty:
        print(todo.describe())
    for one in broken:
        print(messages.text("doctor.repair", name=one.name, detail=one.detail))
    if not sure and not _agreed():
        return ()
    changed: dict[str, str] = {}
    failures = deps.mend([one.name for one in broken], groups, options, changed=changed)
    if changed:
        print(messages.text("doctor.fixed", names=", ".join(changed)))
    for failure in failures[1:]:
        print(failure.error)
    if failures:
        raise failures[0].error
    return tuple(changed)


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise SettingError("doctor.unasked")
    return input(f"{messages.text('doctor.ask')} ").strip().lower() in ("y", "yes")
