"""A package that can not be imported ends no refresh, whatever its error looks like, and nobody is told that it can be used."""

from __future__ import annotations

import sys

import pytest

from sd3deploy.refresh import refresh

ERRORS = {
    "nameless": "raise ModuleNotFoundError('no backend of mine')",  # a library that raises it by hand gives no name
    "nameless, with a cause": "raise ModuleNotFoundError from ValueError('x')",
    "a name of its own": "raise ModuleNotFoundError('x', name='fakeodd.part')",
    "of another": "import no_such_module_of_anybody",
    "no text": "raise ImportError",
    "exit": "raise SystemExit(3)",
}


@pytest.mark.parametrize("error", ERRORS)
def test_a_package_that_can_not_be_imported_raises_nothing_and_is_not_usable(tmp_path, monkeypatch, error):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "fakeodd").mkdir()
    (tmp_path / "fakeodd" / "__init__.py").write_text(ERRORS[error])
    info = tmp_path / "fakeodd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fakeodd\nVersion: 1.0\n")
    (info / "RECORD").write_text("fakeodd/__init__.py,,\n")
    try:
        verdict = refresh(["fakeodd"])
    finally:
        sys.modules.pop("fakeodd", None)
    assert "fakeodd" not in verdict.refreshed
    assert all(entry.reason for entry in verdict.restart)
