"""Settings over the API: whatever comes is stored, of any type, outside of the choices too."""

from typing import Any

from modules.shared import opts


def get_options():
    return dict(opts.data)


def set_options(req: dict[str, Any]):
    updated = [{key: opts.set(key, value)} for key, value in req.items()]
    opts.save()
    return {"updated": updated}


def get_options_info():
    return {"options": {key: {"label": info.label, "section_id": info.section[0], "default": info.default, "visible": info.visible,
                              "component_args": {name: value for name, value in info.args().items() if name == "choices"}}
                        for key, info in opts.data_labels.items()}}  # fmt: skip
