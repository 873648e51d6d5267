from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tracemalloc
import zipfile

import pytest

from sd3deploy.diagnosis import logfile
from sd3deploy.errors import LogError

TEXT = "".join(f"12:00:0{number} ERROR    Größe {number} паръ 大小\n" for number in range(9)) + "last line without an end"


def read(path):
    return "".join(logfile.blocks(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_any_unicode_encoding(tmp_path, encoding):
    (tmp_path / "log").write_bytes(TEXT.encode(encoding))
    assert read(tmp_path / "log") == TEXT


COUNTRIES = {
    "cp1252": "Größe, déjà vu, señor",
    "cp1251": "Не удаётся найти указанный файл, процесс не может получить доступ к файлу",
    "gb18030": "页面文件太小，无法完成操作。系统找不到指定的文件",
    "shift_jis": "ページング ファイルが小さすぎるため、この操作を完了できません",
}


@pytest.mark.parametrize(("encoding", "words"), COUNTRIES.items())
def test_the_code_page_of_a_country(tmp_path, encoding, words):
    text = "".join(f"OSError: [WinError 1455] {words} ({number})\n" for number in range(40))
    (tmp_path / "log").write_bytes(text.encode(encoding))
    assert "OSError: [WinError 1455]" in read(tmp_path / "log")
    assert words[:6] in read(tmp_path / "log")


def test_bytes_that_are_no_text_at_all(tmp_path):
    (tmp_path / "log").write_bytes(b"before\n\xff\xfe\x00\x81\x8d" + bytes(range(256)) + b"\nCUDA out of memory\n")
    assert "CUDA out of memory" in read(tmp_path / "log")


def test_an_encoding_that_changes_in_the_middle_loses_no_ascii(tmp_path):
    (tmp_path / "log").write_bytes(b"x" * 70_000 + b"\nplain\n" + "größe\n".encode("cp1252") + b"no space left\n")
    assert "no space left" in read(tmp_path / "log")


@pytest.mark.parametrize(("name", "opener"), [("gz", gzip.open), ("bz2", bz2.open), ("xz", lzma.open)])
def test_compressed_whatever_its_name(tmp_path, name, opener):
    with opener(tmp_path / f"sdnext.log.{name}", "wb") as file:
        file.write(TEXT.encode())
    (tmp_path / f"sdnext.log.{name}").rename(tmp_path / "sdnext.log")
    assert read(tmp_path / "sdnext.log") == TEXT


def test_the_log_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        archive.writestr("report.txt", "x" * 10_000)
        archive.writestr("sdnext.log", TEXT)
    assert read(tmp_path / "bundle.zip") == TEXT
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("picture.png", "")
    with pytest.raises(LogError, match=r"no \.log"):
        read(tmp_path / "other.zip")


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert read("-") == TEXT


def test_rotated_logs_oldest_first(tmp_path):
    for name in ("sdnext.log", "sdnext.log.1", "sdnext.log.2", "sdnext.log.10.gz", "sdnext.log.old", "sdnext.log.bak.1"):
        (tmp_path / name).touch()
    assert [path.name for path in logfile.rotated(tmp_path / "sdnext.log")] == [
        "sdnext.log.10.gz",
        "sdnext.log.2",
        "sdnext.log.1",
        "sdnext.log",
    ]
    assert logfile.rotated(tmp_path / "none.log") == []


@pytest.mark.parametrize(("make", "id"), [(lambda path: None, "log.missing"), (lambda path: path.mkdir(), "log.damaged"),
                                          (lambda path: path.write_bytes(gzip.compress(b"x" * 100_000)[:60]), "log.damaged"),
                                          (lambda path: path.write_bytes(b"PK\x03\x04rubbish"), "log.damaged")])  # fmt: skip
def test_what_can_not_be_read_is_said_with_a_remedy(tmp_path, make, id):
    make(tmp_path / "log")
    with pytest.raises(LogError) as caught:
        read(tmp_path / "log")
    assert caught.value.id == id
    assert caught.value.remedy


def test_blocks_end_with_lines_and_a_line_without_end_is_cut(tmp_path):
    (tmp_path / "log").write_text("short\n" + "x" * 5_000_000 + "\nend\n")
    found = list(logfile.blocks(tmp_path / "log"))
    assert all(block.endswith("\n") for block in found)
    assert max(map(len, found)) < 1_200_000
    assert found[-1].endswith("end\n")


def test_memory_does_not_grow_with_the_file(tmp_path):
    with gzip.open(tmp_path / "log.gz", "wb") as file:
        for number in range(2000):
            file.write(f"2026-11-25 19:21:09,109 | pc | sd | INFO | launch | {number} ".encode() * 200 + b"\n")
    tracemalloc.start()
    for _ in logfile.blocks(tmp_path / "log.gz"):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # of 22 MB


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_tail_begins_with_a_line(tmp_path, encoding):
    (tmp_path / "log").write_bytes("".join(f"line {number} größe\n" for number in range(1000)).encode(encoding))
    text = logfile.tail(tmp_path / "log", 1001)
    assert text.endswith("line 999 größe\n")
    assert text.startswith("line ")
    assert len(text.encode(encoding)) <= 1006
    assert logfile.tail(tmp_path / "log", 10**6).startswith("line 0") or encoding == "utf-16"
