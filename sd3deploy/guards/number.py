"""A number out of whatever a request, a setting or a widget holds."""

from __future__ import annotations

import math

__all__ = ["number"]


def number(value: object) -> float | None:
    """`value` as a finite number; None for None, NaN, infinity, truth values and texts that are no number."""
    if value is None or isinstance(value, bool):
        return None
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
