"""What all routes have in common: how an answer that is an error looks, in which language it is, and what the host's page of docs shows."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException, Request

from sd3deploy import messages, units
from sd3deploy.errors import Sd3Error, SettingError
from sd3deploy.origin import Trusted, is_foreign
from sd3deploy.webui.api.problem import Problem
from sd3deploy.webui.host.reach import sdnext
from sd3deploy.webui.page import language

__all__ = ["PREFIX", "TAG", "Conflict", "Forbidden", "NoJson", "Refused", "Route", "TooLarge", "add"]

PREFIX = "/sdapi/v1/sd3"
TAG = "SD3 Deploy"
_LARGEST = 1 << 16  # bytes of a body: a path of Linux has at most 4096

_PROBLEMS = {
    400: "The body is no text.",
    401: "The host was started with --auth, and the user or the password is missing or wrong.",
    403: "This server allows nobody to do that, or not to a page of another site.",
    409: "It could not be done: everything is as it was.",
    413: "The body is larger than any that means something.",
    415: "A request that changes something needs a body of JSON, with Content-Type: application/json; {} will do.",
    422: "Something in the request is unknown or of the wrong type.",
    429: "More requests in a minute than the host's setting server_rate_limit allows from one address to one path.",
}
_IS_A_PROBLEM = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_ALWAYS = (401, 422, 429)
_READING = ("GET", "HEAD")


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
        super().__init__(self.code, messages.joined(message, remedy))
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


class NoJson(Refused):
    """A request that changes something, as any page on the web can make a browser send it."""

    code = 415


class TooLarge(Refused):
    """A body that holds more than any question of ours: nothing in it is looked at."""

    code = 413


def add(route: Route) -> None:
    """Register it with the host, which asks for the password first. What changes something is not open to pages of other sites."""
    codes = (*_ALWAYS, *_guarded(route.method), *route.problems)
    responses: dict[int | str, Any] = {code: {"description": _PROBLEMS[code], "content": _IS_A_PROBLEM} for code in codes}
    responses[_ALWAYS[0]]["model"] = Problem  # one brings the schema; FastAPI takes 0.2 ms for each that it is given
    more = dict(route.more)
    responses |= more.pop("responses", {})
    sdnext.shared.api.add_api_route(
        f"{PREFIX}/{route.path}",
        _answering(route.handler, guarded=route.method not in _READING),
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


def _guarded(method: str) -> tuple[int, ...]:
    return () if method in _READING else (400, 403, 413, 415) if method == "POST" else (403,)


def _answering(handler: Callable[..., Any], guarded: bool) -> Callable[..., Any]:
    """`handler` with its errors as answers, behind `_admit` where it is guarded. FastAPI reads the signature with its types, so they are
    looked up where they were written; what a parameter depends on comes after what the route depends on, which is the password.
    """

    @functools.wraps(handler)
    def answer(*, sd3_admitted: None = None, **values: Any) -> Any:
        try:
            return handler(**values)
        except SettingError as error:
            raise Refused.of(error) from error
        except Sd3Error as error:
            raise Conflict.of(error) from error

    signature = inspect.signature(handler, eval_str=True)
    if guarded:
        admitted = inspect.Parameter("sd3_admitted", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[None, Depends(_admit)])
        signature = signature.replace(parameters=[*signature.parameters.values(), admitted])
    answer.__signature__ = signature  # type: ignore[attr-defined]
    return answer


async def _admit(request: Request) -> None:
    """Raise Forbidden for a page of another site, NoJson without a body of JSON: browsers send that of another site only after they have
    asked, and so do they with DELETE. Raise TooLarge for a body of more than 64 KiB: so whatever a request names is bounded.
    """
    flags = sdnext.shared.cmd_opts
    trusted = Trusted(*(str(given or "") for given in (flags.cors_origins, flags.cors_regex)))
    if is_foreign(request.headers, trusted):
        shown = {"origin": request.headers.get("origin", "?")[:100], "host": request.headers.get("host", "?")[:100]}
        raise Forbidden.of(SettingError("api.foreign", **shown))
    if request.method == "POST":
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        if len(body) > _LARGEST:
            raise TooLarge.of(SettingError("api.too-large", size=units.size(len(body)), most=units.size(_LARGEST)))
        if kind != "application/json" or not body.strip():
            raise NoJson.of(SettingError("api.no-json", example="{}", path=request.url.path))
        _check(body)


def _check(body: bytes) -> None:
    """Raise Refused for what Python reads as JSON though no answer could quote it: NaN, Infinity, half a surrogate pair."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False, allow_nan=False).encode("utf-8")
    except json.JSONDecodeError:
        return  # FastAPI says where
    except (ValueError, RecursionError) as error:
        raise Refused.of(SettingError("api.not-json", error=error)) from error


async def _speaking(
    accept_language: Annotated[str | None, Header(description="The language of sentences in the answer, such as “en” or “zh-CN”.")] = None,
) -> AsyncIterator[None]:
    """The whole answer, with what is wrong with the request, in the language of whoever asks."""
    with messages.speaking(language.of_request(accept_language)):
        yield
