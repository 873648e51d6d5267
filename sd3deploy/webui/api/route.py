"""What all routes have in common: how an answer that is an error looks, in which language it is, and what the host's page of docs shows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException

from sd3deploy import messages
from sd3deploy.errors import Sd3Error, SettingError
from sd3deploy.webui.api.problem import Problem
from sd3deploy.webui.page import language

__all__ = ["PREFIX", "TAG", "Conflict", "Forbidden", "Refused", "Route", "add"]

PREFIX = "/sdapi/v1/sd3"
TAG = "SD3 Deploy"

_PROBLEMS = {
    400: "The body is no text.",
    401: "The host was started with --auth, and the user or the password is missing or wrong.",
    403: "This server allows nobody to do that.",
    409: "It could not be done: everything is as it was.",
    422: "Something in the request is unknown or of the wrong type.",
    429: "More requests in a minute than the host's setting server_rate_limit allows from one address to one path.",
}
_ALWAYS = (401, 422, 429)


@dataclass(frozen=True)
class Route:
    """One method of one path. handler: its docstring is the description. answer: the model of what it returns. problems: codes of errors
    beyond those that every route has. more: further arguments of FastAPI's add_api_route.
    """

    method: str
    path: str
    handler: Callable[..., Any]
    summary: str
    answer: Any
    problems: tuple[int, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


class Refused(HTTPException):
    """An answer that is an error, as the host answers errors: `detail` for people, `body` with the id of the sentence for programs."""

    code = 422

    def __init__(self, id: str, message: str, remedy: str) -> None:
        super().__init__(self.code, f"{message} {remedy}".strip())
        self.body = {"id": id, "message": message, "remedy": remedy}

    @classmethod
    def of(cls, error: Sd3Error) -> Refused:
        """For an error of ours."""
        return cls(error.id, error.message, error.remedy)


class Conflict(Refused):
    """It could not be done."""

    code = 409


class Forbidden(Refused):
    """Nobody may do that here."""

    code = 403


def add(route: Route) -> None:
    """Register it with the host, which asks for the password first."""
    from modules import shared

    responses: dict[int | str, Any] = {code: {"model": Problem, "description": _PROBLEMS[code]} for code in (*_ALWAYS, *route.problems)}
    more = dict(route.more)
    responses |= more.pop("responses", {})
    shared.api.add_api_route(
        f"{PREFIX}/{route.path}",
        _answering(route.handler),
        methods=[route.method],
        tags=[TAG],
        summary=route.summary,
        response_model=route.answer,
        response_model_exclude_unset=True,  # what an answer does not have is not there, instead of null
        responses=responses,
        dependencies=[Depends(_speaking)],
        operation_id=f"sd3_{route.method.lower()}_{route.path.replace('/', '_')}",
        **more,
    )


def _answering(handler: Callable[..., Any]) -> Callable[..., Any]:
    """`handler` with its errors as answers. FastAPI reads the signature with its types, so they are looked up where they were written."""

    @functools.wraps(handler)
    def answer(**values: Any) -> Any:
        try:
            return handler(**values)
        except SettingError as error:
            raise Refused.of(error) from error
        except Sd3Error as error:
            raise Conflict.of(error) from error

    answer.__signature__ = inspect.signature(handler, eval_str=True)  # type: ignore[attr-defined]
    return answer


async def _speaking(
    accept_language: Annotated[str | None, Header(description="The language of sentences in the answer, such as “en” or “zh-CN”.")] = None,
) -> AsyncIterator[None]:
    """The whole answer, with what is wrong with the request, in the language of whoever asks."""
    with messages.speaking(language.of_request(accept_language)):
        yield
