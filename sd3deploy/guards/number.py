"""A number out of whatever a request, a setting or a widget holds."""

from __future__ import annotations

import math

__all__ = ["LARGEST", "number"]

LARGEST = 2.0**53  # to which a float holds every whole number


def number(value: object) -> float | None:
    """`value` as a number between −LARGEST and LARGEST; None for None, NaN, infinity, truth values, texts that are no number, and for
    numbers that no job, card or disk has: products of some of them are finite all the same, and whole ones are exact.
    """
    if value is None or isinstance(value, bool):
        return None
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and abs(found) <= LARGEST else None
