"""Command line flags. The host reads this file even while the extension is disabled, so there is nothing else in it."""

import os


def preload(parser):
    """A flag that stays in the launch line after the extension is gone keeps the host from starting; the variable does not."""
    parser.add_argument(
        "--sd3-no-install",
        action="store_true",
        default=os.environ.get("SD3_NO_INSTALL", "").strip().lower() in ("1", "true", "yes", "on"),
        help="Stable Diffusion 3: never install or repair packages, say what is missing instead (or set SD3_NO_INSTALL=1)",
    )
