"""What went wrong with a repository, in one sentence with a remedy."""

from __future__ import annotations

import errno
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sd3deploy.errors import EncoderError, Sd3Error

__all__ = ["PASSING", "headers_of", "passes", "refused", "shown", "status_of", "told", "words"]

PASSING = (408, 429, 500, 502, 503, 504)  # as huggingface_hub's http_backoff has them
_LIBRARIES = ("httpx", "httpcore", "httpx2", "httpcore2", "requests", "urllib3", "ssl")  # of huggingface_hub 1, 2 and 0, in that order
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def status_of(error: BaseException) -> int | None:
    """The number of the answer that an error is about; None where no answer came."""
    return getattr(getattr(error, "response", None), "status_code", None)


def headers_of(error: BaseException) -> Any:
    """The headers of the answer that an error is about; None where no answer came."""
    return getattr(getattr(error, "response", None), "headers", None)


def passes(error: BaseException) -> bool:
    """Whether it may go well when it is tried again."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, (Sd3Error, OfflineModeIsEnabled)) or getattr(error, "errno", None) in _FULL:
        return False
    if (status := status_of(error)) is not None:
        return status in PASSING
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def told(error: BaseException, server: str, file: str) -> Exception:
    """What huggingface_hub or the network has raised, as an EncoderError; what is none of theirs as it is. file: with its repository."""
    from huggingface_hub import errors

    server = shown(server)
    repository = file.partition(":")[0].partition("@")[0]
    page = f"{server}/{repository}"
    if isinstance(error, Sd3Error):
        return error
    if isinstance(error, errors.OfflineModeIsEnabled):
        return EncoderError("hub.offline", file=file)
    if getattr(error, "errno", None) in _FULL:
        return EncoderError("hub.disk-full", file=file)
    status = status_of(error)
    if isinstance(error, errors.GatedRepoError):
        return EncoderError("hub.gated", repository=repository, page=page, tokens=f"{server}/settings/tokens")
    if isinstance(error, errors.RepositoryNotFoundError):
        return EncoderError("hub.no-repository", repository=repository, page=page, tokens=f"{server}/settings/tokens")
    if isinstance(error, errors.HFValidationError):
        return EncoderError("hub.no-repository", repository=repository, page=page, tokens=f"{server}/settings/tokens")
    if status == 401 or status == 403:
        return refused(status, server, file)
    if isinstance(error, (errors.RevisionNotFoundError, errors.EntryNotFoundError)) or status == 404:
        return EncoderError("hub.no-file", file=file, page=page)
    if status is not None:
        return EncoderError("hub.status", server=server, file=file, status=status)
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES:
        return EncoderError("hub.unreachable", server=server, file=file, error=words(error))
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def refused(status: int, server: str, file: str) -> EncoderError:
    """401 or 403 of somebody who does not say why."""
    server = shown(server)
    repository = file.partition(":")[0].partition("@")[0]
    return EncoderError("hub.refused", server=server, file=file, status=status, page=f"{server}/{repository}")


def words(error: BaseException | str) -> str:
    """The first line of what an error says, without the secrets that an address may have in it."""
    from sd3deploy.redact import Redactor

    status = status_of(error) if isinstance(error, BaseException) else None
    text = f"HTTP {status}" if status else str(error).strip() or type(error).__name__
    return Redactor(paths=False)(text.splitlines()[0][:1000])[:200].rstrip(".")


def shown(server: str) -> str:
    """The address of a server as a user may see it: without the name, the password and the token that a mirror may want in it."""
    parts = urlsplit(server)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
