"""Everything that is to be put right, one after the other: what can not be repaired stops nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from sd3deploy.deps.execution import apply, tidy
from sd3deploy.deps.options import Options
from sd3deploy.deps.pip import Progress
from sd3deploy.deps.planning import plan
from sd3deploy.deps.repairing import repair
from sd3deploy.deps.requirement import requirements
from sd3deploy.deps.status import State, Status, check
from sd3deploy.deps.stopping import Stopped
from sd3deploy.errors import RestartRequired
from sd3deploy.installed import version, versions
from sd3deploy.vendored import same_version

__all__ = ["Failure", "ensure", "mend"]

HOST = "host"


@dataclass(frozen=True)
class Failure:
    """What could not be done, or what only a restart helps now (RestartRequired). group: of pyproject.toml, "" for the core, "host"."""

    names: tuple[str, ...]
    group: str
    error: Exception


def ensure(groups: Iterable[str] = (), options: Options | None = None, progress: Progress | None = None) -> tuple[str, ...]:
    """Make the core requirements and those of the named groups true. Returns the names of the distributions that changed.

    When all is well nothing is started and nothing heavy is imported.
    Raises, after everything else is done, DependencyError (with the remedy), or RestartRequired where a loaded package is not the one on
    disk any more.
    """
    changed: dict[str, str] = {}
    for failure in mend((), groups, options, progress, changed):
        raise failure.error
    return tuple(changed)


def mend(
    host: Iterable[str],
    groups: Iterable[str] = (),
    options: Options | None = None,
    progress: Progress | None = None,
    changed: dict[str, str] | None = None,
    begin: Callable[[tuple[str, ...]], object] = lambda names: None,
) -> tuple[Failure, ...]:
    """Repair those packages of the host, then make the core requirements and those of the groups true. Returns what failed.

    What is broken, or belongs to others, is tried on its own; the rest of a group in one call of the installer. changed: filled in,
    distribution → version, as the work goes on; a stop leaves what was done. begin: called with the names before something is done.
    Raises Stopped (see stopping.stoppable) and nothing else of what a step may raise; KeyError for a group that there is not.
    """
    options, changed = options or Options(), {} if changed is None else changed
    failures: list[Failure] = []

    def attempt(names: tuple[str, ...], group: str, step: Callable[[], dict[str, str]]) -> None:
        try:
            changed.update(step())
        except Stopped:
            raise
        except RestartRequired as late:
            changed.update({name: version(name) or "" for name in names})
            failures.append(Failure(names, group, late))
        except Exception as error:  # whatever it is, the others are none the worse for it
            failures.append(Failure(names, group, error))

    def work(statuses: tuple[Status, ...]) -> dict[str, str]:
        todo = plan(statuses, options, versions())
        begin((*(one.name for one in todo.changes), *todo.sweep))
        return apply(todo, options, progress).changed

    def put_back(name: str) -> dict[str, str]:
        begin((name,))
        return repair(name, options.host_root, options, progress).changed

    attempt((), "", lambda: tidy() or {})
    for name in host:
        attempt((name,), HOST, lambda name=name: put_back(name))
    statuses = check(requirements(groups))
    for batch in _batches(statuses):
        attempt(tuple(one.name for one in batch), batch[0].requirement.group, lambda batch=batch: work(batch))
    for status in statuses:
        now = changed.get(status.name, status.installed)
        if status.loaded and now and not status.brought and not same_version(status.loaded, now):
            error = RestartRequired("deps.restart", name=status.name, loaded=status.loaded, installed=now)
            failures.append(Failure((status.name,), status.requirement.group, error))
    return tuple(failures)


def _batches(statuses: Iterable[Status]) -> Iterator[tuple[Status, ...]]:
    """What is done in one call: each broken one alone, of each group the rest together. What is in order is in none of them."""
    todo = [one for one in statuses if one.state not in (State.OK, State.STALE)]
    alone = [one for one in todo if one.state is State.BROKEN or one.blocked]
    yield from ((one,) for one in alone)
    for _, rest in groupby((one for one in todo if one not in alone), lambda one: one.requirement.group):
        yield tuple(rest)
