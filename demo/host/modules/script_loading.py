"""Load a file of an extension as a module that no import can find again."""

import contextlib
import importlib.util
import io
import os

from installer import setup_logging

from modules import errors
from modules.logger import log


def load_module(path):
    """An exception is only logged: whoever asked gets a module that is empty or half filled."""
    spec = importlib.util.spec_from_file_location(os.path.basename(path), path)
    module = importlib.util.module_from_spec(spec)
    try:
        if "sd-extension-" in path:  # these may print, and keep their handlers on the log
            spec.loader.exec_module(module)
        else:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                spec.loader.exec_module(module)
            setup_logging()
            for line in filter(None, printed.getvalue().splitlines()):
                log.info(f"Extension: script='{os.path.relpath(path)}' {line.strip()}")
    except Exception as e:
        errors.display(e, f"Module load: {path}")
    return module


def preload_extensions(extensions_dir, parser):
    """preload.py of every extension, the disabled ones too."""
    for name in sorted(os.listdir(extensions_dir)) if os.path.isdir(extensions_dir) else []:
        script = os.path.join(extensions_dir, name, "preload.py")
        if os.path.isfile(script):
            try:
                module = load_module(script)
                if hasattr(module, "preload"):
                    module.preload(parser)
            except Exception as e:
                errors.display(e, f"Extension preload: {script}")
