"""The logger `sd`: console, a file, and the last 100 lines as JSON for the log panel. Scripts can not keep handlers on it."""

import logging
import os
import sys
import traceback
from functools import partialmethod
from logging.handlers import RotatingFileHandler

log = logging.getLogger("sd")
log_file = os.environ.get("SD_LOG") or os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "sdnext.log")
logging.TRACE = 25
logging.addLevelName(logging.TRACE, "TRACE")
logging.Logger.trace = partialmethod(logging.Logger.log, logging.TRACE)
LINE = '{ "created":%(created)f, "facility":"%(name)s", "level":"%(levelname)s", "module":"%(module)s", "msg":"%(message)s" }'


class RingBuffer(logging.Handler):
    def __init__(self, capacity):
        super().__init__(logging.INFO)
        self.capacity = capacity
        self.buffer = []

    def emit(self, record):
        line = logging.makeLogRecord(record.__dict__ | {"msg": record.getMessage().replace('"', "'")[:1024], "args": None})
        self.buffer.append(logging.Formatter(LINE).format(line))
        del self.buffer[: -self.capacity]


def _traceback(error, suppress=None):
    log.critical("".join(traceback.format_exception(type(error), error, error.__traceback__)))


def _quiet(quiet=False, *args, **kwargs):
    if not quiet:
        log.debug(*args, **kwargs)


def setup_logging(debug=None, trace=None, filename=None):
    """Install the handlers anew; every other handler is dropped, and `log.buffer` becomes a new list."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.DEBUG)
    log.propagate = False
    console = logging.StreamHandler(sys.__stdout__)
    console.setLevel(logging.INFO)
    console.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(message)s", "%H:%M:%S"))
    file = RotatingFileHandler(log_file, maxBytes=32 * 2**20, backupCount=9, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s | host | %(name)s | %(levelname)s | %(module)s | %(message)s"))
    ring = RingBuffer(100)
    for handler in (console, file, ring):
        log.addHandler(handler)
    log.buffer = ring.buffer
    log.traceback = _traceback
    log.quiet = _quiet
    for name in ("diffusers", "transformers", "torch", "httpx", "asyncio", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.ERROR)


def get_log():
    return log


setup_logging()
