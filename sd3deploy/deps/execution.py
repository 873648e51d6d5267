"""Doing what a plan says: under the lock, in one call, undone when it fails, believed only after a look at the disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from sd3deploy.deps import stopping
from sd3deploy.deps.candidate import about, failed, resolve, write_constraints
from sd3deploy.deps.failure import classify
from sd3deploy.deps.lock import install_lock
from sd3deploy.deps.options import Options
from sd3deploy.deps.pip import Progress, fall_back, run
from sd3deploy.deps.planning import Change, Plan, constraints_file, plan, with_command
from sd3deploy.deps.quarantine import Quarantine, recover, sweep
from sd3deploy.deps.requirement import Requirement, normal, requirements
from sd3deploy.deps.site_folders import infos, installed, writable_site
from sd3deploy.deps.status import State, check, same
from sd3deploy.errors import DependencyError, RestartRequired

__all__ = ["Outcome", "apply", "ensure"]


@dataclass(frozen=True)
class Outcome:
    """changed: distribution → version that is on disk now. seconds: how long it took. output: what pip or uv said."""

    changed: dict[str, str]
    seconds: float
    output: str


def ensure(groups: Iterable[str] = (), options: Options | None = None, progress: Progress | None = None) -> tuple[str, ...]:
    """Make the core requirements and those of the named groups true. Returns the names of the distributions that changed.

    When all is well nothing is started and nothing heavy is imported.
    Raises DependencyError (with the remedy), or RestartRequired where a loaded package is not the one on disk any more.
    """
    options = options or Options()
    before = check(requirements(groups))
    todo = plan(before, options, installed())
    changed = {} if todo.empty else apply(todo, options, progress).changed
    for status in before:
        now = changed.get(status.name, status.installed)
        if status.loaded and now and not same(status.loaded, now):
            raise RestartRequired("deps.restart", name=status.name, loaded=status.loaded, installed=now)
    return tuple(changed)


def apply(plan: Plan, options: Options, progress: Progress | None = None) -> Outcome:
    """Carry out a plan. What another process did meanwhile is seen and not done twice.

    Raises DependencyError: not allowed, offline, no network, no permission, disk full, no wheel, stopped (stopping.stoppable), … Then
    everything that was replaced is back in its place, and no partial package is left.
    """
    start = time.monotonic()
    if not plan.empty:
        _permit(plan, options)
    with install_lock() as lock:
        try:
            plan = _again(plan, options)
            before = installed()
            for name in plan.sweep:
                sweep(name)
            output = _install(resolve(plan, options), options, progress, lock) if plan.changes else ""
        except OSError as error:  # a file that can not be moved or written; what was moved is back already
            id, detail = classify(f"{error}", 1)
            raise DependencyError(id, **about(plan), detail=detail) from error
        after = installed()
    touched = {normal(change.name): change.name for change in plan.changes}
    changed = {touched.get(name, name): found for name, found in after.items() if name in touched or before.get(name) != found}
    return Outcome(changed, time.monotonic() - start, output)


def _permit(plan: Plan, options: Options) -> None:
    if not options.allow:
        raise DependencyError("deps.not_allowed", **about(plan))
    # Offline the user may still have a folder of wheels, and says so with --no-index.
    if plan.changes and options.offline and "--no-index" not in options.extra_args:
        raise DependencyError("deps.offline", **about(plan))
    folder = writable_site()
    if folder.is_dir() and shutil.disk_usage(folder).free < plan.unpacked:
        raise DependencyError("deps.disk_full", **about(plan), detail=str(folder))


def _again(old: Plan, options: Options) -> Plan:
    """The plan made anew under the lock: another process may have done the work, or died in the middle of it."""
    for status in old.statuses:
        recover(status.name)
    return plan(check(status.requirement for status in old.statuses), options, installed())


def _install(plan: Plan, options: Options, progress: Progress | None, lock: int) -> str:
    """The one call, with what is broken moved out of its way; an error puts it back."""
    write_constraints(plan, constraints_file())
    with ExitStack() as undo:
        for change in plan.changes:
            if change.replace or (stopping.possible() and _ours(change)):
                undo.enter_context(Quarantine(change.name))
        code, output = run(plan.command, options, progress, lock)
        other = fall_back(plan.command, options) if code else None
        if other:
            plan = with_command(plan, other, dict(line.split("==", 1) for line in plan.constraints))
            code, output = run(plan.command, options, progress, lock)
        _verify(plan, code, output)
    return output


def _ours(change: Change) -> bool:
    """Whether pip would replace the files of this distribution, not put others before them. Where it may be killed half-way they are moved
    away as well: pip itself puts them back only where it is left the time for it.
    """
    found = infos(change.name)
    return bool(found) and all(info.path.parent == writable_site() for info in found)


def _verify(plan: Plan, code: int, output: str) -> None:
    """What counts is on disk: pip also says 0 when another installer was at work, or when it installed elsewhere."""
    wrong = [
        one
        for one in check(Requirement(change.name, change.specifier) for change in plan.changes)
        if one.state not in (State.OK, State.STALE) and not one.only_residue
    ]
    if wrong and code:
        raise failed(plan, code, output, plan.command)
    if wrong:
        detail = " ".join(one.detail for one in wrong)
        raise DependencyError("deps.not_proven", **about(plan), detail=detail)
