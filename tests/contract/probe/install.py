"""Writes down how the host has called it."""

import json
import os
import sys
from pathlib import Path

facts = {"cwd": os.getcwd(), "PYTHONPATH": os.environ.get("PYTHONPATH"), "executable": sys.executable}
Path(__file__).with_name("installed.json").write_text(json.dumps(facts))
print("printed by install.py")
