"""The steps one after the other. Whatever happens in one of them, a result comes of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sd3deploy import messages
from sd3deploy.diagnosis import matcher
from sd3deploy.diagnosis.checks.context import Context
from sd3deploy.diagnosis.checks.result import Cancelled, Outcome, Progress, Result, Say, State
from sd3deploy.diagnosis.checks.rules import seen
from sd3deploy.diagnosis.finding import Finding, finding
from sd3deploy.diagnosis.rule import Advice
from sd3deploy.diagnosis.unknown import UNKNOWN
from sd3deploy.errors import Sd3Error

__all__ = ["Step", "blocked", "crashed", "ending", "explain", "known", "run", "title", "unmade"]

_ENOUGH: tuple[State, ...] = ("ok", "warning")


@dataclass(frozen=True)
class Step:
    """id: its title is `checks.<id>.title`. run: given the context and what to report progress to. needs: ids of the steps without
    which it makes no sense.
    """

    id: str
    run: Callable[[Context, Say], Outcome]
    needs: tuple[str, ...] = ()


def title(id: str) -> str:
    """For the screen."""
    return messages.text(f"checks.{id}.title")


def run(
    steps: Iterable[Step],
    context: Context,
    progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
    before: Iterable[Result] = (),
) -> Iterator[Result]:
    """Results as they come, one for each step. before: what other steps have found already.

    A step whose need has failed is skipped; what comes after `cancelled` says yes, or after Ctrl-C, is cancelled.
    """
    steps = tuple(steps)
    states: dict[str, State] = {result.id: result.state for result in before}
    stopped = False
    try:
        for number, step in enumerate(steps, 1):
            at = Progress(step.id, title(step.id), number, len(steps))
            stopped = stopped or cancelled()
            if stopped:
                result = unmade(step.id)
            elif lack := blocked(step, states):
                result = unmade(step.id, lack)
            else:
                progress(at)
                result = _one(step, context, _sayer(at, progress, cancelled))
                stopped = result.state == "cancelled"
            states[step.id] = result.state
            yield result
    finally:
        context.release()


def blocked(step: Step, states: Mapping[str, State]) -> str | None:
    """The id of the step that it needs and that did not go well; a step that nobody has asked for is taken to be well."""
    return next((need for need in step.needs if states.get(need, "ok") not in _ENOUGH), None)


def unmade(id: str, lack: str = "") -> Result:
    """The result of a step that was not made: skipped for lack of another one, else cancelled."""
    if lack:
        return Result("skipped", messages.text("checks.skipped", step=title(lack)), id=id, title=title(id))
    return Result("cancelled", messages.text("checks.cancelled"), id=id, title=title(id))


def explain(error: BaseException | str, context: Context) -> list[Finding]:
    """What an error means; one that nobody knows is still a finding."""
    found = known(error, context)
    if found:
        return found
    lines = error.strip().splitlines()[-1:] if isinstance(error, str) else [f"{type(error).__name__}: {_first_line(error)}"]
    return [finding(UNKNOWN, {"error": "".join(lines)}, evidence=tuple(lines))]


def known(error: BaseException | str, context: Context) -> list[Finding]:
    """What the rules say to it; nothing where they fail themselves, which must not hide what they were asked about."""
    try:
        return matcher.diagnose(error, lambda: context.installed)
    except Exception:
        return []


def crashed(package: str, code: int | None, said: str, context: Context) -> Finding:
    """What a process that has died over a package tells; where that is no more than that it died, which package it was."""
    told = next((one for one in known(said, context) if one.rule != "process-crashed"), None)
    words = {"package": package, "code": code, "executable": sys.executable}
    return told or seen("import-crash", words, Advice(package=package), ending(said))


def ending(said: str) -> tuple[str, ...]:
    """The lines of what was said last that a person wants to see."""
    return tuple(line for line in said.splitlines() if line.strip())[-12:]


def _one(step: Step, context: Context, say: Say) -> Result:
    started = time.perf_counter()
    try:
        outcome = step.run(context, say)
    except (Cancelled, KeyboardInterrupt):
        outcome = Outcome("cancelled", messages.text("checks.cancelled"))
    except Exception as error:
        outcome = _failed(error, context)
    return Result(**outcome.__dict__, id=step.id, title=title(step.id), seconds=round(time.perf_counter() - started, 3))


def _failed(error: Exception, context: Context) -> Outcome:
    """An expected error knows its remedy; what caused it may be known all the same."""
    if isinstance(error, Sd3Error):
        return Outcome("failed", error.message, error.remedy, tuple(known(error, context)) or (_as_finding(error),))
    findings = explain(error, context)
    return Outcome("failed", findings[0].message, findings[0].remedy, tuple(findings))


def _as_finding(error: Sd3Error) -> Finding:
    return Finding(error.id, "unknown", "setting", "", error.message, error.remedy, (str(error),))


def _sayer(at: Progress, progress: Callable[[Progress], None], cancelled: Callable[[], bool]) -> Say:
    def say(fraction: float, text: str) -> None:
        if cancelled():
            raise Cancelled
        progress(Progress(at.id, at.title, at.number, at.total, min(1.0, max(0.0, fraction)), text))

    return say


def _first_line(error: BaseException) -> Any:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
