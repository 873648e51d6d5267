"""The table of what the extension leans on in SD.Next: nothing of the host is reached but through it, and no row is there for nothing."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from sd3deploy import messages
from sd3deploy.webui.host import reach
from sd3deploy.webui.host.contract import BY_NAME, FEATURES, PLACES, TABLE

ROOT = Path(__file__).parent.parent
REACH = ROOT / "sd3deploy/webui/host/reach.py"
SHELL = [*ROOT.glob("sd3deploy/webui/**/*.py"), ROOT / "extension.py", ROOT / "scripts/sd3_deploy.py"]
PAGE = {path.name: path.read_text("utf-8") for path in ROOT.glob("javascript/*.js")}
HOST = {"modules", "pipelines", "installer", "launch", "webui"}
MODULES = {need.place.rpartition(".")[2]: need.place for need in TABLE if need.place not in PLACES}


def tree(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text("utf-8"))))


def chain(node: ast.AST) -> list[str]:
    """["sdnext", "shared", "opts"] of the expression sdnext.shared.opts; [] of one that is no such chain."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def reached() -> set[str]:
    """The names of the host that the extension has in its code, as the table has them; the longest of each expression."""
    found: set[str] = set()
    for path in SHELL:
        chains = [names for node in tree(path) if (names := chain(node)) and names[0] == "sdnext" and len(names) > 2]
        aliases = {}  # opts = sdnext.shared.opts
        for node in tree(path):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and chain(node.value)[:1] == ["sdnext"]:
                aliases[node.targets[0].id] = chain(node.value)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(node.targets[0].elts, node.value.elts, strict=True)
                aliases |= {name.id: chain(value) for name, value in pairs if isinstance(name, ast.Name) and chain(value)[:1] == ["sdnext"]}
        for node in tree(path):
            names = chain(node)
            if len(names) > 1 and names[0] in aliases:
                chains.append([*aliases[names[0]], *names[1:]])
        found |= {f"{MODULES[names[1]]}:{'.'.join(names[2:])}" for names in chains}
    return found


def named() -> set[str]:
    """Names of the table that stand in the code as they are, such as those of patches."""
    text = "\n".join(path.read_text("utf-8") for path in SHELL if path.name != "contract.py")
    return {need.name for need in TABLE if f'"{need.name}"' in text}


@pytest.mark.parametrize("path", SHELL, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_the_host_is_imported_but_by_the_one_module(path):
    for node in tree(path):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.partition(".")[0] for name in names} & HOST
        if isinstance(node, ast.Call) and chain(node.func)[-1:] in (["import_module"], ["__import__"]):
            assert path == REACH
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and path.name not in ("contract.py", "reach.py"):
            assert not re.match(r"(modules|pipelines)\.\w+$|installer$", node.value), node.value


def test_no_name_is_reached_that_is_not_in_the_table():
    on_the_way = {f"{need.place}:{'.'.join(need.path[:end])}" for need in TABLE for end in range(1, len(need.path))}
    for name in reached():
        place, _, path = name.partition(":")
        parts = path.split(".")
        known = any(f"{place}:{'.'.join(parts[:end])}" in BY_NAME for end in range(1, len(parts) + 1))
        assert known or name in on_the_way or parts[-1].startswith("sd3_"), name


def test_no_row_is_there_for_nothing():
    """A hook of the script is one that ours has; a mark of the version says that it is one."""
    panel = (ROOT / "sd3deploy/webui/page/panel.py").read_text("utf-8")
    given = reached() | named()
    for need in TABLE:
        if need.place in PLACES or need.use == "a mark of the version":
            continue
        hook = ":Script." in need.name and re.search(rf"\b{need.path[-1]}\b", panel)
        assert hook or any(name == need.name or name.startswith(f"{need.name}.") for name in given), need.name


def test_what_is_read_of_a_job_is_in_the_table():
    read: set[str] = set()
    for path in ROOT.glob("sd3deploy/webui/**/*.py"):
        for node in tree(path):
            if isinstance(node, ast.Attribute) and (chain(node)[:1] == ["p"] or chain(node)[1:2] == ["p"]):
                names = chain(node)
                read.add(names[names.index("p") + 1] if len(names) > names.index("p") + 1 else "")
            if isinstance(node, ast.Call) and chain(node.func) in (["getattr"], ["optional_field"]) and chain(node.args[0]) == ["p"]:
                read |= {node.args[1].value} if isinstance(node.args[1], ast.Constant) else set()
    fields = {need.path[0] for need in TABLE if need.place == "job"}
    assert read - {"", "init"} <= fields
    assigned = [node for node in tree(ROOT / "sd3deploy/webui/jobs/facts.py") if isinstance(node, ast.Assign)]
    mapped = next(ast.literal_eval(node.value) for node in assigned if chain(node.targets[0]) == ["_ATTRIBUTES"])
    assert fields == (read | set(mapped.values()) | {"init"}) - {""}


def test_what_the_page_needs_of_the_host_is_in_the_table():
    text = "\n".join(PAGE.values())
    others = {"sd3deploy", "addEventListener"}  # ours, and the browser's own
    assert set(re.findall(r"window\.(\w+)", text)) - others == {need.path[0] for need in TABLE if need.place == "browser"}
    elements = {one.replace("{tab}_", "") for need in TABLE if need.place == "page" for one in need.path[0].split("|")}
    fields = re.search(r"const FIELDS = \{(.*?)\};", PAGE["sd3_job.js"], re.S)
    assert fields
    assert set(re.findall(r"'(\w+)'", fields[1])) <= elements
    assert set(re.findall(r"#(settings_submit|quicksettings|settings_section_row_\w+)", text)) <= elements
    assert "_generate" in text
    assert "generate" in elements
    routes = {need.name.rpartition("/")[2] for need in TABLE if need.place == "route"}
    assert set(re.findall(r"sd3\.host\('([^']+)'", text)) == routes


def test_a_default_is_of_the_kind_that_the_row_has():
    for need in TABLE:
        if not need.required and need.default is not None and isinstance(need.gives, type):
            assert isinstance(need.default, need.gives), need.name


@pytest.mark.parametrize("language", messages.languages())
def test_each_feature_has_a_name_and_says_what_is_lost(language):
    catalogue = messages.catalogue(language)
    for id in {need.feature for need in TABLE if need.feature}:
        assert f"feature.{id}" in catalogue
        assert f"feature.{id}.lost" in catalogue


def test_a_row_without_a_default_switches_off_parts_that_there_are():
    known = set(re.findall(r'(?:features\.(?:get|shield)|\bpatch)\("([a-z0-9-]+)"', "\n".join(path.read_text("utf-8") for path in SHELL)))
    known |= set(re.findall(r'"\w+": "([a-z-]+)"', (ROOT / "sd3deploy/webui/page/panel.py").read_text("utf-8")))
    known |= set(re.findall(r'(?:lacks|require)\("([a-z-]+)"\)', "\n".join(path.read_text("utf-8") for path in SHELL)))
    for need in TABLE:
        if need.required and need.feature:
            assert set(FEATURES.get(need.feature, (need.feature,))) <= known, need.name


def test_every_row_says_what_it_is_for_and_what_is_lost():
    for need in TABLE:
        assert need.use
        assert need.lost
        assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", need.since)


def test_a_setting_that_a_newer_host_has_stored_makes_this_one_no_newer(monkeypatch):
    modules, shared = ModuleType("modules"), ModuleType("modules.shared")
    shared.opts = SimpleNamespace(data_labels={"te_shared_t5": None}, te_shared_t5=False, te_shared_te=True)
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    reach._age.cache_clear()
    try:
        assert reach._age() == "2025-09"
        assert reach._resolve(BY_NAME["modules.shared:opts.te_shared_te"]) is False
        shared.opts.data_labels["te_shared_te"] = None
        reach._age.cache_clear()
        assert reach._age() == "2026-06"
        assert reach._resolve(BY_NAME["modules.shared:opts.te_shared_te"]) is True
    finally:
        reach._age.cache_clear()


def test_what_another_extension_does_to_one_job_costs_the_next_one_nothing(monkeypatch):
    monkeypatch.setattr(reach, "state", reach.State())
    fields = {need.path[0]: 1 for need in TABLE if need.kind == "field"}
    odd = SimpleNamespace(**{**fields, "width": object(), "steps": np.int64(20), "cfg_scale": np.float32(7)})
    reach.check_job(odd)
    assert list(reach.state.unmet) == ["job:width"]
    assert reach.state.lacks("guard")
    reach.check_job(SimpleNamespace(**fields))
    assert reach.state.unmet == {}
    assert not reach.state.lacks("guard")


def test_what_another_extension_has_wrapped_is_as_the_host_has_it():
    def load_text_encoder(repo_id, cls_name, load_config=None, subfolder=None):
        return None

    def changed(repo_id, cls_name):
        return None

    def around(function):
        return lambda *args, **kwargs: function(*args, **kwargs)

    changed.__name__ = "load_text_encoder"
    need = BY_NAME["pipelines.generic:load_text_encoder"]
    assert reach._uncallable(need, around(around(load_text_encoder))) == ""
    assert "load_config" in reach._uncallable(need, around(changed))


def test_what_switches_a_part_off_is_told_though_less_was_told_of_its_feature(monkeypatch):
    state, told = reach.State(), []
    monkeypatch.setattr(reach, "state", state)
    state.listen = lambda found: told.append({need.name for need in found})
    grave, other = [need for need in TABLE if need.feature == "encoders" and need.required][:2]
    light = replace(next(need for need in TABLE if need.feature == "host-t5"), feature="encoders")
    monkeypatch.setitem(BY_NAME, light.name, light)
    for _ in range(2):
        for need in (light, grave, other, light):
            state.report({need: "is gone"})
    assert told == [{light.name}, {grave.name}]
    assert not state.told(light)


def test_a_value_that_is_right_again_is_written(monkeypatch):
    shared = ModuleType("modules.shared")
    shared.state = SimpleNamespace(interrupted="odd")
    monkeypatch.setattr(reach, "state", reach.State())
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    assert reach.sdnext.shared.state.interrupted is False
    shared.state.interrupted = False
    reach.sdnext.shared.state.interrupted = True
    assert shared.state.interrupted is True
