"""The old name of scripts_manager, for extensions that import it."""

from modules import scripts_manager
from modules.scripts_manager import *  # noqa: F403

scripts_txt2img = scripts_img2img = scripts_control = scripts_current = None


def register_runners():
    global scripts_txt2img, scripts_img2img, scripts_control
    scripts_txt2img, scripts_img2img, scripts_control = (
        scripts_manager.scripts_txt2img,
        scripts_manager.scripts_img2img,
        scripts_manager.scripts_control,
    )
