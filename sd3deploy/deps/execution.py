"""Doing what a plan says: under the lock, in one call, undone when it fails, believed only after a look at the disk."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from sd3deploy.deps import stopping
from sd3deploy.deps.candidate import about, failed, resolve, write_constraints
from sd3deploy.deps.damage import Damage
from sd3deploy.deps.failure import classify
from sd3deploy.deps.lock import install_lock
from sd3deploy.deps.options import Options
from sd3deploy.deps.pip import Progress, fall_back, run, shown
from sd3deploy.deps.planning import Change, Plan, constraints_file, plan, with_command
from sd3deploy.deps.quarantine import Quarantine, interrupted, recover, rubbish, sweep
from sd3deploy.deps.requirement import Requirement
from sd3deploy.deps.status import Status, check
from sd3deploy.errors import DependencyError
from sd3deploy.installed import distributions, versions, writable_site
from sd3deploy.vendored import canonicalize_name

__all__ = ["Outcome", "apply", "left_alone", "tidy"]


@dataclass(frozen=True)
class Outcome:
    """changed: distribution → version that is on disk now. seconds: how long it took. output: what pip or uv said."""

    changed: dict[str, str]
    seconds: float
    output: str


def apply(plan: Plan, options: Options, progress: Progress | None = None) -> Outcome:
    """Carry out a plan. What another process did meanwhile is seen and not done twice.

    Raises DependencyError: not allowed, offline, no network, no permission, disk full, no wheel, files that others own, stopped
    (stopping.stoppable), … Then everything that was replaced is back in its place, and no partial package is left.
    """
    start = time.monotonic()
    leave = bool(options.refusal) and not plan.changes  # leftovers of a stopped pip do no harm
    if plan.empty or (leave and not plan.blocked):
        return Outcome({}, 0.0, "")
    _permit(plan, options)
    with install_lock() as lock:
        try:
            plan = _again(plan, options)
            if plan.blocked:
                raise left_alone(plan.blocked[0])
            before = versions()
            for name in plan.sweep:
                sweep(name)
            output = _install(resolve(plan, options), options, progress, lock) if plan.changes else ""
        except OSError as error:  # a file that can not be moved or written; what was moved is back already
            id, detail = classify(f"{error}", 1)
            raise DependencyError(id, **about(plan), detail=detail) from error
        after = versions()
    touched: dict[str, str] = {canonicalize_name(change.name): change.name for change in plan.changes}
    changed = {touched.get(name, name): found for name, found in after.items() if name in touched or before.get(name) != found}
    return Outcome(changed, time.monotonic() - start, output)


def _permit(plan: Plan, options: Options) -> None:
    if forbidden := options.forbids if plan.changes else "":
        raise DependencyError(forbidden, **about(plan))
    folder = writable_site()
    if folder.is_dir() and shutil.disk_usage(folder).free < plan.unpacked:
        raise DependencyError("deps.disk_full", **about(plan), detail=str(folder))


def _again(old: Plan, options: Options) -> Plan:
    """The plan made anew under the lock: another process may have done the work, or died in the middle of it."""
    for status in check(status.requirement for status in old.statuses if interrupted(status.name)):
        recover(status.name, healthy=status.installed is not None and status.damages == {Damage.INTERRUPTED})
    _delete_rubbish()
    return plan(check(status.requirement for status in old.statuses), options, versions())


def tidy() -> None:
    """Delete what killed repairs have left that means nothing any more. Takes the lock only where there is something."""
    if rubbish():
        with install_lock():
            _delete_rubbish()


def _delete_rubbish() -> None:
    for folder in rubbish():
        shutil.rmtree(folder, ignore_errors=True)  # in use: the next one tries again


def left_alone(status: Status) -> DependencyError:
    """Why a distribution is left alone whose files others own too, and the one thing to do."""
    names = (*status.owners, *((status.name,) if status.installed and not status.brought else ()))
    return DependencyError(
        "deps.shared",
        name=status.name,
        owners=", ".join(status.owners),
        detail=status.detail,
        command=shown((sys.executable, "-m", "pip", "uninstall", "-y", *names)),
    )


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
    found = distributions(change.name)
    return bool(found) and all(one.site == writable_site() for one in found)


def _verify(plan: Plan, code: int, output: str) -> None:
    """What counts is on disk: pip also says 0 when another installer was at work, or when it installed elsewhere."""
    wrong = [one for one in check(Requirement(change.name, change.specifier) for change in plan.changes) if one.wrong]
    if wrong and code:
        raise failed(plan, code, output, plan.command)
    if wrong:
        detail = " ".join(one.detail for one in wrong)
        raise DependencyError("deps.not_proven", **about(plan), detail=detail)
