"""How sizes are written on the screen."""

__all__ = ["size"]


def size(bytes: int) -> str:
    """As in “2.7 GB” (10⁹ bytes); “0.4 MB” for the small models of tests and demos."""
    return f"{bytes / 1e9:.1f} GB" if bytes >= 1e8 else f"{bytes / 1e6:.1f} MB"
