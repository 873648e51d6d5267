"""Which SD.Next the stand-in is: `--like 2026-07`, as it was read and tried, or `--like 2026-08`, as its changelog and documentation tell.
What differs stands where the host has it, behind AUGUST.

What an extension does not meet is left out: the live preview beside the progress, the host's own websocket and its password, the checks of
paths of the host's own endpoints, /sdapi/v1/storage, the video tab, the login form.
"""

from modules import cmd_args

AUGUST = cmd_args.parse_args().like >= "2026-08"
