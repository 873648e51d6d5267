"""Start the stand-in: arguments, extensions' preload and install, then the web interface; wait for a restart or the end.

It is run as SD.Next is: from its own folder, `python launch.py --data-dir D --port P`.
"""

import os
import sys
import time

import installer
from installer import run_extension_installer  # noqa: F401  extensions ask launch for it
from modules.like import AUGUST
from modules.logger import log

args = None
parser = None


def main():
    global args, parser
    from modules import cmd_args

    parser = cmd_args.parser
    args, _ = parser.parse_known_args()
    installer.args = args
    installer.read_options()
    if AUGUST:
        installer.set_environment()
    if args.skip_all:
        log.info("Startup: skip=all")
    else:
        installer.install_extensions()
    installer.extensions_preload(parser)  # flags of extensions are known only from here on
    args = installer.parse_args(parser)  # strict: an unknown flag ends the program
    import webui

    server = webui.webui()
    while server.thread.is_alive():
        time.sleep(1.0)
    if server.wants_restart:
        log.info("Server restarting...")
        os.execv(sys.executable, ["python", *sys.argv])  # argv[0] is a bare name: the environment has to be on PATH
    log.info("Exiting...")


if __name__ == "__main__":
    main()
