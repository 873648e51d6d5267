"""The commands of `python -m sd3deploy`. A command is a module with `add(subparsers)`, and a place in COMMANDS."""

from sd3deploy.commands import check, estimate, recommend

__all__ = ["COMMANDS"]

COMMANDS = (check, estimate, recommend)
