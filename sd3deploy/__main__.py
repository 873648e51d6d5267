"""`python -m sd3deploy COMMAND`: what the extension knows, without a running server. A command is a module of sd3deploy.commands."""

from __future__ import annotations

import argparse
import os
import sys
import traceback

from sd3deploy import inside, messages
from sd3deploy.errors import HostError, Sd3Error

__all__ = ["main"]

_LANGUAGE = ("SD3DEPLOY_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")  # a parent of ours, then as POSIX orders them


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns its exit code; 2 with a sentence on stderr for an error that is expected."""
    arguments = sys.argv[1:] if arguments is None else arguments
    messages.set_language(next(filter(None, map(os.environ.get, _LANGUAGE)), ""))
    try:
        code = inside.elsewhere(arguments)
        return _here(arguments) if code is None else code
    except Sd3Error as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception:  # a bug of ours; Python's own exit code for it is 1, which means that something was found
        traceback.print_exc()
        return 2


def _here(arguments: list[str]) -> int:
    try:
        from sd3deploy import commands
    except ImportError as error:  # `packaging`, and no pip that has a copy
        raise HostError("host.python-bare", executable=sys.executable, detail=error) from error
    parser = argparse.ArgumentParser(prog="python -m sd3deploy", description="Stable Diffusion 3 in SD.Next: look before you generate.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in commands.COMMANDS:
        command.add(subparsers)
    found = parser.parse_args(arguments)
    return found.run(found)


if __name__ == "__main__":
    code = main()
    # CPython notes that Ctrl-C fell into an eval or exec (dataclasses and namedtuples are made so) and ends with SIGINT in place of the
    # exit code, though somebody caught it; the next exec clears the note.
    exec("")
    sys.exit(code)
