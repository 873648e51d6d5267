"""The cases of the drift rehearsal, made of the contract table: each row in each way in which it can change, and pairs of rows."""

from __future__ import annotations

import itertools
from typing import Any

from sd3deploy.webui.host.contract import BY_NAME, PLACES, TABLE, Need

__all__ = ["MOST_USED", "cases", "ways"]

# The ten rows that most of the extension goes by: each pair of them is gone at once.
MOST_USED = (
    "modules.sd_models:path_to_repo",
    "modules.shared:opts.diffusers_offload_mode",
    "modules.sd_models:clear_caches",
    "modules.sd_offload:set_diffuser_offload",
    "modules.processing:process_images_inner",
    "modules.processing_diffusers:process_diffusers",
    "pipelines.model_sd3:load_sd3",
    "pipelines.generic:load_text_encoder",
    "modules.shared:state.begin",
    "modules.scripts_manager:Script.process",
)


def ways(need: Need) -> tuple[str, ...]:
    """How a row can change. A function that the host wraps itself in is not made to raise: then the host does not work either."""
    if need.kind in ("element", "route"):
        return ("gone", "renamed")
    if need.kind == "patch":
        return ("gone", "renamed", "position", "keyword", "result")
    if need.kind == "function":
        result = ("result",) if need.gives is not None else ()
        return ("gone", "renamed", "position", "keyword", *result, "raises")
    if need.kind == "callback":
        hook = ":Script." in need.name and need.path[-1] not in ("title", "show", "ui")
        return ("gone", "renamed", "position", "keyword") if hook or ":on_" in need.name else ("gone", "renamed")
    if need.kind == "browser":
        return ()  # tests/contract/test_page.py
    if ":Script." in need.name:  # of a class
        return ("gone", "renamed")
    return ("gone", "renamed", *(("type",) if need.gives is not None else ()), "raises")


def cases() -> list[dict[str, Any]]:
    """[{"id", "changes": [{"name", "how"}], "short"}]"""
    modules = sorted({need.place for need in TABLE if need.place not in PLACES})
    found = [_case((f"module {name}", how)) for name in modules for how in ("gone", "renamed")]
    found += [_case((need.name, how)) for need in TABLE for how in ways(need)]
    found += [_case((one, "gone"), (other, "gone")) for one, other in itertools.combinations(MOST_USED, 2)]
    return found


def _case(*changes: tuple[str, str]) -> dict[str, Any]:
    given = [{"name": name, "how": how} for name, how in changes]
    return {"id": " + ".join(f"{name} {how}" for name, how in changes), "changes": given, "short": _like_gone(*changes[0])}


def _like_gone(name: str, how: str) -> bool:
    """Whether the start finds it out as it does that something is gone: what comes of that is tried with the case that is gone."""
    need = BY_NAME.get(name)
    called = need is not None and need.kind == "function"
    return how in ("renamed", "type") or (called and how in ("position", "keyword"))
