"""The command line. Extensions add flags in preload.py; a flag that nobody knows ends the start."""

import argparse
import os

parser = argparse.ArgumentParser(description="SD.Next stand-in", conflict_handler="resolve")
parser.add_argument("--data-dir", default=os.environ.get("SD_DATADIR", ""), help="folder with settings, models and extensions")
parser.add_argument("--models-dir", default=None)
parser.add_argument("--extensions-dir", default=None)
parser.add_argument("--config", default=None)
parser.add_argument("--port", type=int, default=7860)
parser.add_argument("--server-name", default=None)
parser.add_argument("--auth", default=None, help="user:password[,user:password]")
parser.add_argument("--theme", default=None)
parser.add_argument("--locale", default=os.environ.get("SD_LOCALE"), help="the language of the page, in place of the setting")
parser.add_argument("--docs", default="SD_NODOCS" not in os.environ, action="store_true", help="serve /openapi.json (as it is)")
parser.add_argument("--log", default=None)
parser.add_argument("--like", choices=("2026-07", "2026-08"), default="2026-07", help="which SD.Next the stand-in is: modules/like.py")
parser.add_argument("--cors-origins", default=None)
parser.add_argument("--cors-regex", default=None)
for flag in ("listen", "share", "insecure", "api", "uv", "safe", "debug", "freeze", "quick", "reinstall", "upgrade", "medvram", "lowvram"):
    parser.add_argument(f"--{flag}", action="store_true")
for flag in ("skip-all", "skip-git", "skip-torch", "skip-extensions", "skip-requirements"):
    parser.add_argument(f"--{flag}", action="store_true")


if parser.parse_known_args()[0].like < "2026-08":
    parser.add_argument("--use-directml", action="store_true")  # gone since: with it in the launch line the host does not start


def parse_args():
    """All flags that are known at this moment; later ones are left to the extensions' preload."""
    args, _ = parser.parse_known_args()
    args.config = args.config or os.path.join(args.data_dir, "config.json")
    args.secrets = os.path.join(args.data_dir, "secrets.json")
    args.disable_extension_access = bool(args.share or args.listen or args.server_name) and not args.insecure
    return args
