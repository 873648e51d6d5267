"""The API. Extensions add routes with `shared.api.add_api_route`, which asks for the password where there is one."""

import os
from secrets import compare_digest

import installer
from fastapi import BackgroundTasks, Depends, HTTPException, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from modules import sd_checkpoint, sd_models, shared
from modules.api import generate, models, options
from modules.loader import get_packages
from modules.logger import log


def get_log(lines: int = 100, clear: bool = False):
    found = log.buffer[:lines] if lines > 0 else list(log.buffer)
    if clear:
        log.buffer.clear()
    return found


def post_log(req: models.ReqPostLog):
    log.error(f"UI: {req.error}") if req.error else log.info(f"UI: {req.message or req.debug}")
    return Response(status_code=204)


def get_progress():
    state = shared.state
    progress = state.sampling_step / state.sampling_steps if state.sampling_steps else 0
    return {"id": state.id, "progress": round(min(progress, 1), 2), "eta_relative": 0, "state": state.dict(), "textinfo": state.textinfo}


def get_memory():
    from modules.memstats import memory_stats

    return memory_stats()


def get_sd_models():
    return [{"title": info.title, "name": info.name, "filename": info.filename, "type": info.type, "hash": info.shorthash}
            for info in sd_checkpoint.checkpoints_list.values()]  # fmt: skip


def get_scripts():
    from modules import scripts_manager as found

    runners = (found.scripts_txt2img, found.scripts_img2img, found.scripts_control)
    return {runner.name: [script.name for script in runner.scripts if script.name] for runner in runners}


def get_script_info():
    from modules import scripts_manager as found

    runners = (found.scripts_txt2img, found.scripts_img2img, found.scripts_control)
    return [script.api_info for runner in runners for script in runner.scripts if script.api_info]


def post_refresh_checkpoints():
    sd_checkpoint.list_models()
    return Response(status_code=204)


def post_unload_checkpoint():
    sd_models.unload_model_weights(op="model")
    return Response(status_code=204)


def post_reload_checkpoint(force: bool = False):
    if force:
        sd_models.unload_model_weights(op="model")
    sd_models.reload_model_weights()
    return Response(status_code=204)


def post_interrupt():
    shared.state.interrupt()
    return Response(status_code=204)


def post_restart(tasks: BackgroundTasks):
    tasks.add_task(installer.restart)
    return Response(status_code=204)


def post_shutdown(tasks: BackgroundTasks):
    tasks.add_task(os._exit, 0)
    return Response(status_code=204)


class Api:
    def __init__(self, app, queue_lock):
        pairs = [pair.split(":", 1) for pair in (shared.cmd_opts.auth or "").split(",") if ":" in pair]
        self.credentials = {user.strip(): password.strip() for user, password in pairs}
        self.app, self.queue_lock = app, queue_lock
        self.generate = generate.APIGenerate(queue_lock)

    def register(self):
        for path, method, fn in (
            ("log", "GET", get_log),
            ("log", "POST", post_log),
            ("version", "GET", lambda: {"app": "sd.next stand-in", "commit": "demo"}),
            ("platform", "GET", get_packages),
            ("progress", "GET", get_progress),
            ("memory", "GET", get_memory),
            ("options", "GET", options.get_options),
            ("options", "POST", options.set_options),
            ("options-info", "GET", options.get_options_info),
            ("sd-models", "GET", get_sd_models),
            ("scripts", "GET", get_scripts),
            ("script-info", "GET", get_script_info),
            ("cmd-flags", "GET", lambda: vars(shared.cmd_opts)),
            ("txt2img", "POST", self.generate.post_text2img),
            ("img2img", "POST", self.generate.post_img2img),
            ("interrupt", "POST", post_interrupt),
            ("refresh-checkpoints", "POST", post_refresh_checkpoints),
            ("unload-checkpoint", "POST", post_unload_checkpoint),
            ("reload-checkpoint", "POST", post_reload_checkpoint),
            ("restart", "POST", post_restart),
            ("shutdown", "POST", post_shutdown),
        ):
            self.add_api_route(f"/sdapi/v1/{path}", fn, methods=[method])

    def add_api_route(self, path, fn, auth=True, **kwargs):
        if auth and self.credentials:
            kwargs["dependencies"] = [*kwargs.get("dependencies", []), Depends(self.auth)]
        if shared.opts.subpath:
            self.app.add_api_route(f"{shared.opts.subpath}{path}", endpoint=fn, **kwargs)
        self.app.add_api_route(path, endpoint=fn, **kwargs)

    def auth(self, credentials: HTTPBasicCredentials = Depends(HTTPBasic())):  # noqa: B008
        """The password, or the token of a browser session."""
        if credentials.username in self.credentials:
            tokens = getattr(self.app, "tokens", None) or {}
            if compare_digest(credentials.password, self.credentials[credentials.username]) or credentials.password in tokens:
                return True
        raise HTTPException(status_code=401, detail="Unauthorized", headers={"WWW-Authenticate": "Basic"})
