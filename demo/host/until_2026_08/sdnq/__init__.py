"""modules.sdnq: SDNQ as a part of the host. Since 2026-08 it is a package of its own, and only that."""

from sdnq import SDNQConfig

__all__ = ["SDNQConfig"]
