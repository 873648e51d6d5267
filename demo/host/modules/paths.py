"""Where things are. Read before anything heavy is imported."""

import json
import os

from modules import cmd_args

_args = cmd_args.parse_args()
try:
    with open(_args.config, encoding="utf-8") as file:
        config = json.load(file)
except (OSError, ValueError):
    config = {}

modules_path = os.path.dirname(os.path.realpath(__file__))
script_path = os.path.dirname(modules_path)
data_path = _args.data_dir
_models = _args.models_dir or config.get("models_dir") or "models"
models_path = _models if os.path.isabs(_models) else os.path.join(data_path, _models)
extensions_dir = _args.extensions_dir or os.path.join(data_path, "extensions")
extensions_builtin_dir = os.path.join(script_path, "extensions-builtin")


def resolve_output_path(base_path, specific_path):
    if not specific_path or os.path.isabs(specific_path):
        return specific_path or base_path or ""
    return os.path.normpath(os.path.join(base_path or data_path, specific_path))
