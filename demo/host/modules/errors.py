"""How the host reports an exception that it swallows."""

from modules.logger import log


class ValidationError(ValueError):
    """An expected failure: shown without a traceback."""


def install(suppress=None):
    """The host installs pretty tracebacks here; the stand-in keeps Python's."""


def display(e, task, suppress=None):
    if isinstance(e, ValidationError):
        log.error(f"{task}: {e}")
        return
    log.error(f"{task}: {type(e).__name__}")
    log.traceback(e)
