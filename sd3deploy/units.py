"""How sizes are written on the screen."""

__all__ = ["size"]

# Name, bytes of one (powers of ten), from how many bytes on it is used, and its digits after the point.
_UNITS = (("GB", 1e9, 1e8, 1), ("MB", 1e6, 1e5, 1), ("kB", 1e3, 0, 0))


def size(bytes: int, beside: int = 0) -> str:
    """As in “2.7 GB”; “0.4 MB” for the small models of tests and demos, “40 kB” for slow lines.

    beside: what it is to be compared with, in bytes: both are written in the unit of the larger one. What is too little for that unit is
    “<0.1 GB”, and nothing is “0 GB”. The page writes sizes in the same way (javascript/sd3_dom.js).
    """
    largest = max(bytes, beside) or 1e9
    name, one, _, digits = next(unit for unit in _UNITS if largest >= unit[2])
    if not bytes:
        return f"0 {name}"
    least = 10**-digits
    return f"<{least:g} {name}" if bytes / one < least / 2 else f"{bytes / one:.{digits}f} {name}"
