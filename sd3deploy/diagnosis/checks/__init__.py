"""Checks, step by step: first what can be seen, then the real thing on a small scale.

    for result in checks.run(checks.STEPS, context, progress, cancelled): …
    for result in checks.rehearse_in_child(context, progress, cancelled, before=results): …     beside a running server

Importing this costs the standard library and `packaging`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sd3deploy.diagnosis.checks import device, environment, files, imports, packages, rehearsal
from sd3deploy.diagnosis.checks.context import Context
from sd3deploy.diagnosis.checks.result import Cancelled, Outcome, Progress, Result, State
from sd3deploy.diagnosis.checks.runner import Step, run, title

__all__ = ["QUICK", "RUN", "STEPS", "Cancelled", "Context", "Outcome", "Progress", "Result", "State", "Step",
           "rehearse_in_child", "run", "title"]  # fmt: skip

QUICK = (
    Step("environment", environment.check),
    Step("packages", packages.check),
    Step("imports", imports.check),
    Step("device", device.check, ("imports",)),
    Step("files", files.check),
)
RUN = (
    Step("base", rehearsal.base, ("imports", "device", "files")),
    Step("encoder", rehearsal.encoder, ("base",)),
    Step("image", rehearsal.image, ("base",)),
)
STEPS = (*QUICK, *RUN)


def rehearse_in_child(
    context: Context,
    progress: Callable[[Progress], None] = lambda progress: None,
    cancelled: Callable[[], bool] = lambda: False,
    before: Iterable[Result] = (),
) -> Iterator[Result]:
    """The steps of RUN in a process of its own, as they come; it is ended when `cancelled` says yes. before: results of QUICK."""
    return rehearsal.in_child(RUN, context, progress, cancelled, before)
