# ruff: noqa: E501 (long fixtures)
from __future__ import annotations

import errno
import gzip
import io
import json
import os
import zipfile

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sd3deploy.bundle import LOG_SIZE, Bundle
from sd3deploy.errors import BundleError, Sd3Error
from sd3deploy.redact import Redactor
from sd3deploy.report import Report
from tests.test_redact import ANY_PASSWORD, EMAIL, FOLDERS, NAME, NAMED, PASSWORD, PLACES, SHAPED, spelled
from tests.test_report import FULL, finding

MEMBERS = ["report.txt", "report.json", "report.md", "log.txt", "settings.json", "packages.txt", "timeline.json", "events.json"]


def report(**parts):
    return Report(**{"generated": "2026-11-26T01:02:03+00:00", "redactor": Redactor(), **FULL, **parts})


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "sdnext.log"
    path.write_text("one token=abcdefgh\ntwo\n", encoding="utf-8")
    return path


def read(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode("utf-8") for name in archive.namelist()}


def test_what_is_in_it(tmp_path, log):
    runs = [{"number": 1, "kind": "job", "readings": {"ram": [1, 2]}, "title": "/home/jane/x"}]
    bundle = Bundle.make(
        report(settings={"sd3_encoder": "T5 FP4", "hf_token": "abcdefgh"}, events=[{"id": "x", "message": "m"}]), log, runs=runs
    )
    path = bundle.write(tmp_path / "bundle.zip")
    found = read(path)
    assert list(found) == MEMBERS
    assert found["report.txt"] == report().text()
    assert found["log.txt"] == "one token=<token>\ntwo\n"
    assert json.loads(found["settings.json"]) == {"sd3_encoder": "T5 FP4", "hf_token": "<token>"}
    assert found["packages.txt"].splitlines() == ["diffusers==0.36.0", "google-auth==2.23.0", "torch==2.9.1+cu128", "transformers==4.57.1"]
    assert json.loads(found["timeline.json"]) == [{"number": 1, "kind": "job", "readings": {"ram": [1, 2]}, "title": "/home/<user>/x"}]
    assert json.loads(found["events.json"]) == [{"id": "x", "message": "m"}]
    assert json.loads(found["report.json"])["findings"][0]["rule"] == "stale"
    assert [one.name for one in tmp_path.glob("*.zip")] == ["bundle.zip"]
    assert not list(tmp_path.glob(".*"))


def test_the_same_makes_the_same(log):
    assert Bundle.make(report(), log).data() == Bundle.make(report(), log).data()
    with zipfile.ZipFile(io.BytesIO(Bundle.make(report(), log).data())) as archive:
        assert {one.date_time for one in archive.infolist()} == {(2026, 11, 26, 1, 2, 2)} or {
            one.date_time[:5] for one in archive.infolist()
        } == {(2026, 11, 26, 1, 2)}
        assert not [name for name in archive.namelist() if name.startswith(("/", ".")) or ":" in name]


def test_without_anything(tmp_path):
    bundle = Bundle.make(Report(redactor=Redactor()))
    assert list(read(bundle.write(tmp_path))) == [name for name in MEMBERS if name != "log.txt"]
    assert "No tokens" in bundle.preview()


def test_the_preview_shows_what_is_written(log):
    bundle = Bundle.make(report(), log)
    shown = bundle.preview()
    assert all(name in shown for name in MEMBERS)
    assert bundle.text in shown
    assert f"{bundle.replaced} tokens, passwords, names and addresses" in shown
    assert bundle.replaced == sum(content.count(b"<user>") + content.count(b"<token>") for content in bundle.members.values())


def test_of_a_long_log_the_end_is_taken(log):
    log.write_bytes(b"".join(b"line %08d hf_AbCdEfGhIjKlMnOpQrStUvWx\n" % number for number in range(100_000)))
    text = Bundle.make(report(), log).members["log.txt"].decode()
    assert text.startswith("line ")
    assert text.endswith("line 00099999 <token>\n")
    assert "hf_" not in text
    assert len(text) <= LOG_SIZE


def test_a_short_log_is_continued_by_those_rotated_away(log):
    (log.parent / "sdnext.log.1").write_text("older\n")
    with gzip.open(log.parent / "sdnext.log.2.gz", "wt") as file:
        file.write("oldest token=abcdefgh\n")
    assert Bundle.make(report(), log).members["log.txt"].decode() == "oldest token=<token>\nolder\none token=<token>\ntwo\n"
    log.write_text("x" * LOG_SIZE + "\nnew\n")
    assert Bundle.make(report(), log).members["log.txt"].decode() == "new\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-16-le"])
def test_logs_of_windows(log, encoding):
    log.write_text("Prüfung token=abcdefgh\r\nzwei\r\n" * 3, encoding=encoding, newline="")
    assert "Prüfung token=<token>\nzwei\n" in Bundle.make(report(), log).members["log.txt"].decode()


def test_a_missing_log_does_not_keep_the_rest_back(tmp_path):
    missing = tmp_path / "home" / "jane" / "no.log"
    text = Bundle.make(report(), missing).members["log.txt"].decode()
    assert text.startswith("There is no log")
    assert "jane" not in text


def test_a_file_is_not_overwritten(tmp_path):
    path = tmp_path / "bundle.zip"
    path.write_text("mine")
    with pytest.raises(BundleError, match="--force"):
        Bundle.make(report()).write(path)
    assert path.read_text() == "mine"
    assert list(read(Bundle.make(report()).write(path, force=True)))
    assert [one.name for one in tmp_path.iterdir()] == ["bundle.zip"]


def test_a_folder_gets_a_name_with_the_time(tmp_path):
    assert Bundle.make(report()).write(tmp_path).name == "sd3-report-20261126010203.zip"


@pytest.mark.parametrize(
    ("code", "id"),
    [
        (errno.ENOSPC, "bundle.disk-full"),
        (errno.EACCES, "bundle.forbidden"),
        (errno.EROFS, "bundle.forbidden"),
        (errno.ENOENT, "bundle.no-folder"),
        (errno.EIO, "bundle.failed"),
    ],
)
@pytest.mark.parametrize("at", ["mkstemp", "fsync", "replace"])
def test_what_goes_wrong_is_said_with_a_remedy(tmp_path, monkeypatch, code, id, at):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tempfile.mkstemp" if at == "mkstemp" else f"os.{at}", fail)
    with pytest.raises(Sd3Error) as caught:
        Bundle.make(report()).write(tmp_path / "bundle.zip")
    assert caught.value.id == id
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder(tmp_path):
    with pytest.raises(BundleError) as caught:
        Bundle.make(report()).write(tmp_path / "missing" / "bundle.zip")
    assert caught.value.id == "bundle.no-folder"
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError) as caught:
        Bundle.make(report()).write(tmp_path / "file" / "bundle.zip")
    assert caught.value.id == "bundle.no-folder"


AROUND = st.text("abc 01.,:;=/\\()[]{}-_%\té", max_size=20)
SPOILED = st.one_of(
    st.tuples(st.just("token"), SHAPED, SHAPED),
    st.builds(
        lambda name, secret, place: (name, secret, PLACES[place](name, secret)), NAMED, SHAPED | PASSWORD, st.sampled_from(sorted(PLACES))
    ),
    st.builds(lambda secret: ("literal", secret, f"x {secret} y"), ANY_PASSWORD),
    EMAIL.map(lambda address: ("email", address, f"From: {address}")),
    st.builds(lambda name, place: ("name", name, FOLDERS[place](name)), NAME, st.sampled_from(sorted(FOLDERS))),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(SPOILED, AROUND, AROUND)
def test_no_secret_survives_in_any_file(log, spoiled, before, after):
    kind, secret, text = spoiled
    assume(secret not in before + after)
    text = f"{before}\n{text}\n{after}"
    log.write_text(f"first\n{text}\nlast\n", encoding="utf-8")
    redactor = Redactor([secret] if kind == "literal" else [])
    one = finding(message=text, remedy=text, evidence=text.split("\n"), source=text, package=text)
    check = {"id": "x", "title": text, "state": "failed", "message": text, "findings": [one], "facts": {"x": [text], text: {text: text}}}
    words = {"root": text, "x": text}
    bundle = Bundle.make(
        report(host=words, python=words, device=words, model=words, settings={"x": text, "y": {text: text}}, packages={"x": text, text: None}, memory=words,
               findings=[one], checks=[check], runs=[{"title": text}], events=[{"message": text}], redactor=redactor),
        log, runs=[{"title": text}],
    )  # fmt: skip
    forms = {form.encode("utf-8", "replace") for form in spelled(secret)}
    for name, content in [*bundle.members.items(), ("preview", bundle.preview().encode("utf-8", "replace"))]:
        if kind == "name" and len(secret) < 5:
            continue
        assert not [form for form in forms if form in content], (name, content.decode())
