"""How sizes are written on the screen."""

__all__ = ["size"]


def size(bytes: int) -> str:
    """As in “2.7 GB” (10⁹ bytes); “0.4 MB” for the small models of tests and demos, “40 kB” for slow lines."""
    if bytes >= 1e8:
        return f"{bytes / 1e9:.1f} GB"
    return f"{bytes / 1e6:.1f} MB" if bytes >= 1e5 or not bytes else f"{bytes / 1e3:.0f} kB"
