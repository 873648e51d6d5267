"""What requests are made of: nothing in them is overlooked."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic import BaseModel

from sd3deploy import messages
from sd3deploy.nearest import nearest

__all__ = ["Nothing", "Question"]


class Question(BaseModel, extra="forbid"):
    """A body or a query whose every field is known; of one that is not, the answer names the nearest."""

    if hasattr(pydantic, "model_validator"):  # hosts before 2026-02 have pydantic 1, whose own words have to do

        @pydantic.model_validator(mode="wrap")
        @classmethod
        def _known(cls, data: Any, handler: Any) -> Any:
            known = list(cls.model_fields)
            unknown = [name for name in data if name not in known] if isinstance(data, dict) else []
            if unknown:
                errors: list[Any] = [{"type": _error(name, known), "loc": (str(name),), "input": data[name]} for name in unknown]
                raise pydantic.ValidationError.from_exception_data(cls.__name__, errors)
            return handler(data)


class Nothing(Question):
    """A query without parameters, or the body {}."""


def _error(name: Any, known: list[str]) -> Any:
    from pydantic_core import PydanticCustomError

    shown = str(name)[:60]
    id = "api.unknown-field" if known else "api.unknown-field.none"
    values = {"name": shown, "nearest": nearest(shown, known), "known": ", ".join(known)}
    text: Any = messages.joined(messages.text(id, **values), messages.remedy(id, **values))  # as it is: there is no context
    return PydanticCustomError("unknown_field", text)
