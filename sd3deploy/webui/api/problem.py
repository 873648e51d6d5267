"""An answer that is an error, in the host's own shape."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

__all__ = ["Explanation", "Invalid", "Problem"]


class Explanation(BaseModel, extra="allow"):
    """A failure in words, for programs."""

    id: str = Field(description="Stable name of the sentence, the same in every language.", examples=["setting.encoder-unknown"])
    message: str = Field(description="What is the matter.", examples=["'T6' is not a text encoder choice."])
    remedy: str = Field("", description="What to do about it.", examples=["“T5 FP4” comes nearest; choose one in Settings → SD3 Deploy."])


class Invalid(BaseModel, extra="allow"):
    """One part of a request that is unknown or of the wrong type."""

    loc: list[str | int] = Field(description="Where it stands: in the query or in the body, and the name.", examples=[["query", "widht"]])
    msg: str = Field(description="What is wrong with it.", examples=["“widht” is not known here. “width” comes nearest."])
    type: str = Field(description="The kind of error.", examples=["unknown_field"])


class Problem(BaseModel, extra="allow"):
    """Every error of the host looks like this; a part of the request that is unknown or of the wrong type has `detail` alone, as a list."""

    error: str = Field("", description="The kind of error.", examples=["Refused"])
    code: int = Field(0, description="The status code again.", examples=[422])
    detail: str | list[Invalid] = Field(
        description="What is the matter and what to do about it.", examples=["No Stable Diffusion 3 model is loaded, and none is named."]
    )
    body: Any = Field("", description="`id`, `message` and `remedy` apart, where the error is one of SD3 Deploy's own.")
    errors: str = Field("", description="The error as the log has it.")
