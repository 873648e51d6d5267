"""The commands of `python -m sd3deploy`. A command is a module with `add(subparsers)`, and a place in COMMANDS."""

from sd3deploy.commands import bundle, cache, check, doctor, estimate, quality, quantize, recommend, verify

__all__ = ["COMMANDS"]

COMMANDS = (bundle, cache, check, doctor, estimate, quality, quantize, recommend, verify)
