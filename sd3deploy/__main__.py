"""`python -m sd3deploy COMMAND`: what the extension knows, without a running server. A command is a module of sd3deploy.commands."""

from __future__ import annotations

import argparse
import sys
import traceback

from sd3deploy import commands
from sd3deploy.errors import Sd3Error

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns its exit code; 2 with a sentence on stderr for an error that is expected."""
    parser = argparse.ArgumentParser(prog="python -m sd3deploy", description="Stable Diffusion 3 in SD.Next: look before you generate.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in commands.COMMANDS:
        command.add(subparsers)
    arguments = sys.argv[1:] if arguments is None else arguments
    found = parser.parse_args(arguments)
    found.arguments = arguments  # for whoever hands over to another Python
    try:
        return found.run(found)
    except Sd3Error as error:
        print(error, file=sys.stderr)
        return 2
    except Exception:  # a bug of ours; Python's own exit code for it is 1, which means that something was found
        traceback.print_exc()
        return 2


if __name__ == "__main__":
    sys.exit(main())
