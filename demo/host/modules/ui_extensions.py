"""The Extensions tab: what is installed and switched on, and one more by the address of its repository."""

import html
import json
import os
import re
import shutil
import subprocess

import gradio as gr

from modules import call_queue, extensions, paths, shared
from modules.logger import log

SCHEMES = ("https://", "http://", "git://", "ssh://", "git@")  # a folder of this machine is no address
REFUSED = "Extension: apply changes disallowed because public access is enabled and insecure is not specified"


def normalize_git_url(url):
    address = (url or "").strip().removesuffix(".git")
    if not address.startswith(SCHEMES):
        raise ValueError(f"Invalid git URL: {url}")
    return address


def install_extension_from_url(dirname, url, branch_name, search_text="", sort_column="default"):
    """Clone, run its install.py at once, list it. Its scripts and its page are there after a restart only."""
    if shared.cmd_opts.disable_extension_access:
        log.error(REFUSED)
        return "", ""
    url = normalize_git_url(url)
    name = re.sub(r"[^A-Za-z0-9_.-]", "", (dirname or "").strip() or url.split("/")[-1])
    target, temporary = os.path.join(paths.extensions_dir, name), os.path.join(paths.data_path, "tmp", name)
    log.info(f"Installing extension: {url} into {target}")
    if os.path.exists(target):
        log.error(f'Extension: path="{target}" directory already exists')
        return "", ""
    if any(extension.remote and normalize_git_url(extension.remote) == url for extension in extensions.extensions):
        return "", "Extension with this URL is already installed"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        words = ["git", "clone", "--filter=blob:none", *(["--branch", branch_name] if branch_name else []), "--", url, temporary]
        subprocess.run(words, check=True, capture_output=True, text=True)
        shutil.move(temporary, target)
        from launch import run_extension_installer

        run_extension_installer(target)
        extensions.list_extensions()
        return table(), html.escape(f"Extension installed: {target} | Restart required")
    except Exception as e:
        shutil.rmtree(temporary, ignore_errors=True)
        log.error(f"Error installing extension: {url} {e}")
        return "", f"{e}\n{getattr(e, 'stderr', '')}".strip().replace("\n", "<br>")


def apply_changes(disabled, _update, disable_all):
    """Keep what is switched off, and restart."""
    if shared.cmd_opts.disable_extension_access:
        log.error(REFUSED)
        return
    shared.opts.disabled_extensions = json.loads(disabled)
    shared.opts.disable_all_extensions = disable_all
    shared.opts.save()
    shared.restart_server(restart=True)


def table():
    rows = ""
    for extension in extensions.extensions:
        extension.read_info()
        name, ticked = html.escape(extension.name), "checked" if extension.enabled else ""
        box = f'<input type="checkbox" name="enable_{name}" {ticked}>'
        rows += f"<tr><td>{box}</td><td>{name}</td><td>{html.escape(extension.remote or '')}</td><td>{extension.commit_hash[:8]}</td></tr>"
    return f'<table id="extensions"><tr><th></th><th>Extension</th><th>Address</th><th>Version</th></tr>{rows}</table>'


def create_ui():
    disable_all = gr.Radio(["none", "user", "all"], value=shared.opts.disable_all_extensions, visible=False)
    disabled, update = (gr.Textbox(elem_id=f"extensions_{name}_list", visible=False) for name in ("disabled", "update"))
    with gr.Tabs(elem_id="tabs_extensions"):
        with gr.TabItem("Manage extensions", id="manage"):
            apply = gr.Button("Apply changes", variant="primary")
            listed = gr.HTML(table())
            apply.click(fn=apply_changes, _js="extensions_apply", inputs=[disabled, update, disable_all], outputs=[])
        with gr.TabItem("Manual install", id="install_from_url"):
            url = gr.Textbox(label="Extension GIT repository URL")
            branch = gr.Textbox(label="Specific branch name", placeholder="Leave empty for default main branch")
            dirname = gr.Textbox(label="Local directory name", placeholder="Leave empty for auto")
            install = gr.Button("Install", variant="primary")
            info = gr.HTML(elem_id="extension_info")
            run = call_queue.wrap_gradio_call(install_extension_from_url, extra_outputs=[gr.update()])
            install.click(fn=run, inputs=[dirname, url, branch], outputs=[listed, info])
