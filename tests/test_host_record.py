"""What the server has found of its host reaches `doctor`, which does not run in it."""

from __future__ import annotations

import pytest

from sd3deploy import host_record
from sd3deploy.report import Report

FOUND = {"commit": "058a7f0cf", "checked": 103, "moved": {"modules.shared:opts.set": "is gone → the button changes nothing"}, "older": []}


def test_what_was_kept_is_read(tmp_path):
    host_record.write(tmp_path, FOUND)
    assert host_record.read(tmp_path) == FOUND
    assert host_record.read(tmp_path, "058a7f0cf") == FOUND
    assert [path.name for path in tmp_path.rglob("*.new")] == []


def test_it_is_written_only_where_it_is_new(tmp_path):
    host_record.write(tmp_path, FOUND)
    (path,) = (path for path in tmp_path.rglob("*.json"))
    path.chmod(0o444)
    before = path.stat().st_ino
    host_record.write(tmp_path, FOUND)
    assert path.stat().st_ino == before
    host_record.write(tmp_path, FOUND | {"checked": 104})
    assert host_record.read(tmp_path)["checked"] == 104


def test_what_was_found_of_another_commit_says_nothing_about_this_one(tmp_path):
    host_record.write(tmp_path, FOUND)
    assert host_record.read(tmp_path, "2e1e141a3") == {}


@pytest.mark.parametrize("text", ["", "[1]", "{", "null"])
def test_a_damaged_file_is_none(tmp_path, text):
    host_record.write(tmp_path, FOUND)
    (path,) = (path for path in tmp_path.rglob("*.json"))
    path.write_text(text)
    assert host_record.read(tmp_path) == {}


def test_without_a_folder_nothing_is_known(tmp_path):
    assert host_record.read(None) == host_record.read(tmp_path / "none") == {}


def test_the_report_names_what_has_moved():
    for text in (Report(contract=FOUND).text(), Report(contract=FOUND).markdown()):
        assert "103 names of SD.Next looked at, 1 of them not as expected" in text
        assert "is gone" in text
    assert "opts.set" in Report(contract=FOUND).text()
    assert "names of SD.Next" not in Report().text()
