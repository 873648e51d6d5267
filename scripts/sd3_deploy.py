"""Hands over to extension.py. Loaded by path: other extensions may have a module of that name, and sys.path is the host's."""

import importlib.util
from pathlib import Path

_root = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("sd3deploy_extension", _root / "extension.py")
_extension = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_extension)

SD3Deploy = _extension.start(Path(__file__).parent.parent)
