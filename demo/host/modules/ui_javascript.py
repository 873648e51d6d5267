"""Scripts and styles of the host and of extensions, put into the page that gradio serves."""

import os
import re

import gradio.routes

from modules import paths, scripts_manager

_original = gradio.routes.templates.TemplateResponse


def webpath(path):
    shown = os.path.relpath(path, paths.script_path) if path.startswith(paths.script_path) else path
    return f"file={shown}?{int(os.path.getmtime(path))}".replace("\\", "/")


def html_head():
    """The host's bundle first; then plain scripts, deferred, and modules."""
    head = f'<script type="module" src="{webpath(os.path.join(paths.script_path, "ui", "sdnext.mjs"))}"></script>\n'
    for script in scripts_manager.list_scripts("javascript", ".js"):
        head += f'<script type="text/javascript" defer src="{webpath(script.path)}"></script>\n'
    for script in scripts_manager.list_scripts("javascript", ".mjs"):
        head += f'<script type="module" src="{webpath(script.path)}"></script>\n'
    return head


def html_css():
    files = [os.path.join(paths.script_path, "ui", "sdnext.css"), *scripts_manager.list_files_with_name("style.css")]
    return "".join(f'<link rel="stylesheet" property="stylesheet" href="{webpath(path)}">' for path in files)


def reload_javascript():
    head, css = html_head(), html_css()

    def template_response(*args, **kwargs):
        response = _original(*args, **kwargs)
        body = response.body.replace(b"<head>", b"<head><title>SD.Next stand-in</title>")
        body = re.sub(rb"<script[^>]*iframeResizer[^>]*></script>", b"", body)  # it would come over the network, and nobody frames us
        response.body = body.replace(b"</head>", f"{head}</head>".encode()).replace(b"</body>", f"{css}</body>".encode())
        response.init_headers()
        return response

    gradio.routes.templates.TemplateResponse = template_response
